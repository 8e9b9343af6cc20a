"""The step types a template may name: this table is the only place that knows them all."""

from __future__ import annotations

from collections.abc import Mapping

from services.pipeline_executor.steps.extract import Extract
from services.pipeline_executor.steps.load import Load
from services.pipeline_executor.steps.publish import Publish
from services.pipeline_executor.steps.quality import Quality
from services.pipeline_executor.steps.step import Step
from services.pipeline_executor.steps.transform import Transform

STEPS: Mapping[str, type[Step]] = {
    "extract": Extract,
    "load": Load,
    "transform": Transform,
    "quality": Quality,
    "publish": Publish,
}
