"""Where a data set lies: the fields a customer gives for it, checked by the data set's own model.

A provider's source is one flat object for all of its data sets: a bucket for exports, regions for an API. It is
stored with the credential and overlaid by ``parameters.source`` of a run. Each data set takes the fields it knows and
leaves those that only others know; a field that none of them knows is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from libs.errors import FailedPrecondition, FieldViolation, InvalidArgument
from services.pipeline_executor.run_context import SourceEndpoints


class SourceModel(BaseModel):
    """Base of all data sets' sources: strict, immutable, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read[M: SourceModel](kind: type[M], source: Mapping[str, Any]) -> M:
    """The fields of this kind, from a source that was checked before."""
    return kind.model_validate({name: value for name, value in source.items() if name in kind.model_fields})


def check(
    provider: str,
    kinds: Collection[type[SourceModel]],
    siblings: Collection[type[SourceModel]],
    source: Mapping[str, Any],
) -> Mapping[str, Any]:
    """The fields that data sets of these kinds take; ``siblings`` are all that the provider has.

    Raises ``InvalidArgument(SOURCE_INVALID)``, each bad field named, no value shown.
    """
    taken = {name for kind in kinds for name in kind.model_fields}
    known = {name for kind in siblings for name in kind.model_fields}
    bad = {
        f"source.{name}": f"is no field of a source of {provider}, which has: {', '.join(sorted(known))}."
        for name in sorted(set(source) - known)
    }
    for kind in kinds:
        try:
            read(kind, source)
        except ValidationError as exc:
            for item in exc.errors(include_input=False, include_url=False, include_context=False):
                name, reason = _said(item["type"], item["loc"], item["msg"])
                bad.setdefault(name, reason)
    if bad:
        raise InvalidArgument(
            "SOURCE_INVALID",
            "The source is not usable: " + "; ".join(f"{name} {reason}" for name, reason in bad.items()),
            field_violations=[FieldViolation(name, reason) for name, reason in bad.items()],
        )
    return {name: value for name, value in source.items() if name in taken and value is not None}


def refuse_stand_in(endpoint_url: str | None, endpoints: SourceEndpoints) -> None:
    """No address a customer writes is asked, except on one machine, where clouds are stood in for."""
    if endpoint_url is not None and endpoints.bigquery is None:
        raise FailedPrecondition("SOURCE_INVALID", "source.endpoint_url is for a stack on one machine only.")


def required(field: str) -> ValueError:
    """What a model raises for a field that another one, or nothing, stands in for."""
    return ValueError(field)


def _said(kind: str, loc: tuple[int | str, ...], message: str) -> tuple[str, str]:
    if not loc:
        return f"source.{message.removeprefix('Value error, ')}", "is required."
    name = f"source.{loc[0]}"
    match kind:
        case "missing":
            return name, "is required."
        case "string_pattern_mismatch":
            return name, "is not a name of its kind."
    return name, f"is not valid: {message}."
