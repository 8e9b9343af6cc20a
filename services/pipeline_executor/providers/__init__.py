"""The providers that can be read: this table is the only place that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.errors import FieldViolation, InvalidArgument
from services.pipeline_executor.providers.aws import AwsExtractor
from services.pipeline_executor.providers.azure import AzureExtractor
from services.pipeline_executor.providers.extraction import Extractor
from services.pipeline_executor.providers.gcp import GcpExtractor

EXTRACTORS: Mapping[str, Extractor] = {
    "aws": AwsExtractor(),
    "azure": AzureExtractor(),
    "gcp": GcpExtractor(),
}


def check_source(provider: str, source: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a provider's data lie, with its fields checked; ``InvalidArgument(SOURCE_INVALID)`` names each bad one."""
    extractor = EXTRACTORS.get(provider.lower())
    if extractor is None:
        violation = FieldViolation("provider", f"must be one of {', '.join(sorted(EXTRACTORS))}.")
        raise InvalidArgument("PROVIDER_UNKNOWN", "This provider cannot be read.", field_violations=[violation])
    return extractor.check_source(source)
