"""Pipeline templates: every ``pipelines/{provider}/{domain}/{template}.yaml``, read and checked once at start.

A template is text: its folder and file name are its identity, its steps name types of the table in ``steps`` and
``.sql`` files beside it, or in ``pipelines/shared``, where lies what templates of several providers have in common.
Whatever is wrong with one stops the process at start with the file and the field, so that a loaded ``Pipeline`` needs
no further checks. Requests only look names up in a dict: no path is ever built of them.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources.abc import Traversable
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from libs import tables
from libs.errors import FieldViolation, InvalidArgument, NotFound
from services.pipeline_executor.providers import EXTRACTORS
from services.pipeline_executor.retry import Retry
from services.pipeline_executor.steps import STEPS
from services.pipeline_executor.steps.extract import ExtractConfig
from services.pipeline_executor.steps.step import PACKAGE, PIPELINES, StepConfig

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_SOURCE = "source"


class TemplateInvalid(ValueError):
    """A template that cannot be used; the text names file and field, one a line."""


@dataclass(frozen=True, slots=True)
class PipelineStep:
    """One node of a pipeline; ``config`` is already of its type's own class."""

    name: str
    type: str
    depends_on: tuple[str, ...]
    config: StepConfig
    retry: Retry
    timeout: timedelta


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value a caller may give with a run; one of ``values`` if there are any."""

    name: str
    type: Literal["string", "integer", "boolean", "date"]
    required: bool
    default: str | int | bool | None
    description: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A checked template. Names are lower case; ``tables`` are those it publishes into.

    ``refresh_window_days`` is how many days back its source still changes, so that reading them again is worth it.
    ``revision`` is a hash of all its text: what was published by another one may have become other rows.
    """

    provider: str
    domain: str
    template: str
    description: str
    credential_provider: str
    max_days: int
    tables: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    steps: tuple[PipelineStep, ...]
    refresh_window_days: int = 0
    revision: str = ""

    @property
    def id(self) -> str:
        """``provider/domain/template``."""
        return f"{self.provider}/{self.domain}/{self.template}"

    @property
    def datasets(self) -> tuple[str, ...]:
        """What it reads, in the provider's own words."""
        return tuple(step.config.dataset for step in self.steps if isinstance(step.config, ExtractConfig))

    def check_parameters(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The declared parameters with defaults filled in; ``source`` is allowed always and checked by the provider.

        Raises ``InvalidArgument(PARAMETERS_INVALID)`` with one field violation for each bad, unknown or missing one.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        allowed = ", ".join(sorted([*known, _SOURCE]))
        bad = [
            FieldViolation(f"parameters.{name}", f"is not a parameter of {self.id}, which has: {allowed}.")
            for name in sorted(set(given) - {*known, _SOURCE})
        ]
        values: dict[str, Any] = {}
        for name, parameter in known.items():
            if given.get(name) is None:
                if parameter.required:
                    bad.append(FieldViolation(f"parameters.{name}", f"is required: {parameter.description}"))
                values[name] = parameter.default
                continue
            try:
                values[name] = _PARSERS[parameter.type](given[name])
            except ValueError:
                bad.append(FieldViolation(f"parameters.{name}", f"must be a {parameter.type}."))
                continue
            if parameter.values and values[name] not in parameter.values:
                bad.append(FieldViolation(f"parameters.{name}", f"must be one of {', '.join(parameter.values)}."))
        if bad:
            raise InvalidArgument(
                "PARAMETERS_INVALID",
                "Parameters are not as the template declares them: "
                + "; ".join(f"{violation.field} {violation.description}" for violation in bad),
                field_violations=bad,
            )
        return values


class Templates:
    """All templates of this process, by id."""

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._pipelines = {pipeline.id: pipeline for pipeline in sorted(pipelines, key=lambda pipeline: pipeline.id)}

    @classmethod
    def load(cls, package: str = PACKAGE) -> Templates:
        """Reads every template of the package; ``TemplateInvalid`` lists all that is wrong with all of them."""
        pipelines, faults = [], []
        for path, entry in _files(importlib.resources.files(package).joinpath(PIPELINES)):
            try:
                pipelines.append(parse(path, entry.read_text("utf-8")))
            except TemplateInvalid as exc:
                faults.append(str(exc))
        if faults:
            raise TemplateInvalid("\n".join(faults))
        return cls(pipelines)

    def get(self, provider: str, domain: str, template: str) -> Pipeline:
        """The pipeline of that name, in any case; ``NotFound(TEMPLATE_NOT_FOUND)``."""
        pipeline = self._pipelines.get(f"{provider}/{domain}/{template}".lower())
        if pipeline is None:
            raise NotFound(
                "TEMPLATE_NOT_FOUND",
                "There is no such pipeline template; GET /api/v1/pipelines/templates lists those there are.",
            )
        return pipeline

    def check_provider(self, wanted: str) -> str:
        """A list's filter by provider, in lower case, "" for all; ``InvalidArgument(PROVIDER_UNKNOWN)``."""
        known = sorted({pipeline.provider for pipeline in self._pipelines.values()})
        if wanted and wanted.lower() not in known:
            text = f"must be one of {', '.join(known)}."
            raise InvalidArgument(
                "PROVIDER_UNKNOWN", f"provider {text}", field_violations=[FieldViolation("provider", text)]
            )
        return wanted.lower()

    def list(self) -> Sequence[Pipeline]:
        """All of them, by id."""
        return tuple(self._pipelines.values())


# ------------------------------------------------------------------------------------------------- text → Pipeline


class _Text(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _RetryText(_Text):
    attempts: int = Field(default=1, ge=1, le=10)
    base_seconds: float = Field(default=1.0, gt=0, le=60)
    cap_seconds: float = Field(default=30.0, gt=0, le=600)


class _ParameterText(_Text):
    name: str = Field(pattern=_NAME.pattern)
    type: Literal["string", "integer", "boolean", "date"]
    description: str = Field(min_length=1)
    required: bool = False
    default: str | int | bool | None = None
    values: list[str] = Field(default_factory=list)


class _StepText(_Text):
    name: str = Field(pattern=_NAME.pattern)
    type: str
    depends_on: list[str] = Field(default_factory=list)
    retry: _RetryText = _RetryText()
    timeout_seconds: float = Field(gt=0, le=6 * 3600)
    config: dict[str, Any] = Field(default_factory=dict)


class _PipelineText(_Text):
    description: str = Field(min_length=1)
    credential_provider: str
    max_days: int = Field(ge=1, le=366)
    refresh_window_days: int = Field(default=0, ge=0, le=93)
    tables: list[str] = Field(min_length=1)
    parameters: list[_ParameterText] = Field(default_factory=list)
    steps: list[_StepText] = Field(min_length=1)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key written twice, which YAML would silently let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {str(key) for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"written twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def parse(path: str, text: str) -> Pipeline:
    """Reads one template; ``path`` (``gcp/cost/billing.yaml``) is its identity and where its SQL is looked for."""
    where = f"{PIPELINES}/{path}"
    names = path.removesuffix(".yaml").split("/")
    if not path.endswith(".yaml") or len(names) != 3 or not all(_NAME.fullmatch(name) for name in names):
        raise TemplateInvalid(f"{where}: must be {{provider}}/{{domain}}/{{template}}.yaml in lower-case snake names")
    provider, domain, template = names
    try:
        body = _PipelineText.model_validate(yaml.load(text, _StrictLoader))
    except yaml.YAMLError as exc:
        raise TemplateInvalid(f"{where}: not YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        raise TemplateInvalid(_lines(where, "", exc)) from exc
    if provider not in EXTRACTORS:
        raise TemplateInvalid(f"{where}: provider folder must be one of {sorted(EXTRACTORS)}")
    if body.credential_provider != provider.upper():
        raise TemplateInvalid(f"{where}: credential_provider: must be {provider.upper()}")
    unknown = set(body.tables) - {schema.name for schema in tables.of_provider(provider)}
    if unknown:
        raise TemplateInvalid(
            f"{where}: tables: no schema in libs/tables/{provider} or a shared folder for {sorted(unknown)}"
        )
    folder = f"{PIPELINES}/{provider}/{domain}"
    steps = tuple(_step(where, folder, index, step) for index, step in enumerate(body.steps))
    _check_graph(where, steps)
    pipeline = Pipeline(
        provider=provider,
        domain=domain,
        template=template,
        description=" ".join(body.description.split()),
        credential_provider=body.credential_provider,
        max_days=body.max_days,
        tables=tuple(body.tables),
        parameters=tuple(_parameter(where, index, item) for index, item in enumerate(body.parameters)),
        steps=steps,
        refresh_window_days=body.refresh_window_days,
        revision=hashlib.sha256("\n".join([text, *(repr(step.config) for step in steps)]).encode()).hexdigest(),
    )
    if foreign := sorted(set(pipeline.datasets) - set(EXTRACTORS[provider])):
        raise TemplateInvalid(f"{where}: steps: {provider} has no data set {foreign}")
    return pipeline


def _step(where: str, folder: str, index: int, text: _StepText) -> PipelineStep:
    field = f"steps.{index}"
    if text.type not in STEPS:
        raise TemplateInvalid(f"{where}: {field}.type: must be one of {sorted(STEPS)}")
    try:
        config = STEPS[text.type].Config.model_validate(text.config, context={"folder": folder})
    except ValidationError as exc:
        raise TemplateInvalid(_lines(where, f"{field}.config.", exc)) from exc
    return PipelineStep(
        name=text.name,
        type=text.type,
        depends_on=tuple(text.depends_on),
        config=config,
        retry=Retry(
            text.retry.attempts,
            timedelta(seconds=text.retry.base_seconds),
            timedelta(seconds=text.retry.cap_seconds),
        ),
        timeout=timedelta(seconds=text.timeout_seconds),
    )


def _parameter(where: str, index: int, text: _ParameterText) -> Parameter:
    if text.name == _SOURCE:
        raise TemplateInvalid(f"{where}: parameters.{index}.name: {_SOURCE} is every pipeline's and not declared")
    if text.required and text.default is not None:
        raise TemplateInvalid(f"{where}: parameters.{index}.default: a required parameter has none")
    default = text.default
    if default is not None:
        try:
            default = _PARSERS[text.type](default)
        except ValueError:
            raise TemplateInvalid(f"{where}: parameters.{index}.default: must be a {text.type}") from None
    if text.values and (text.type != "string" or (default is not None and default not in text.values)):
        raise TemplateInvalid(f"{where}: parameters.{index}.values: must be strings and hold the default")
    return Parameter(text.name, text.type, text.required, default, text.description, tuple(text.values))


def _check_graph(where: str, steps: Sequence[PipelineStep]) -> None:
    """Steps come after those they need, read only what those leave, and end in one publication nothing runs beside."""
    before: dict[str, set[str]] = {}
    by_name: dict[str, PipelineStep] = {}
    for index, step in enumerate(steps):
        field = f"{where}: steps.{index}"
        if step.name in by_name:
            raise TemplateInvalid(f"{field}.name: {step.name} is there twice")
        if missing := sorted(set(step.depends_on) - set(by_name)):
            raise TemplateInvalid(f"{field}.depends_on: {missing} must be steps above this one")
        before[step.name] = set(step.depends_on).union(*(before[name] for name in step.depends_on))
        by_name[step.name] = step
        for name, kind in step.config.inputs().items():
            if name not in before[step.name]:
                raise TemplateInvalid(f"{field}.config: reads step {name}, which is not among its depends_on")
            left = STEPS[by_name[name].type].output
            if left is None or not issubclass(left, kind):
                raise TemplateInvalid(f"{field}.config: step {name} leaves no {kind.__name__}")
    last = steps[-1]
    if [step.type for step in steps].count("publish") != 1 or last.type != "publish":
        raise TemplateInvalid(f"{where}: steps: exactly one publish step, as the last")
    if beside := sorted(set(by_name) - before[last.name] - {last.name}):
        raise TemplateInvalid(f"{where}: steps.{len(steps) - 1}.depends_on: publishing must wait for {beside}")


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _files(entry, f"{path}/")
        elif not entry.name.endswith(".sql"):
            yield path, entry


def _lines(where: str, prefix: str, exc: ValidationError) -> str:
    return "\n".join(
        f"{where}: {prefix}{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in exc.errors()
    )


def _integer(value: Any) -> int:
    # A number in a google.protobuf.Struct is always a double.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        raise ValueError
    return int(value)


def _string(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


_PARSERS: Mapping[str, Any] = {
    "string": _string,
    "integer": _integer,
    "boolean": _boolean,
    "date": lambda value: date.fromisoformat(_string(value)).isoformat(),
}
