"""Whatever a template, a date, a run id or a file holds: refused by a word of ours, or taken; never a defect."""

from __future__ import annotations

import contextlib
from datetime import date

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from libs import errors
from services.pipeline_executor import domain, templates
from services.pipeline_executor.providers import bounds
from tests.support.examples import examples

LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), st.text(max_size=20))
TREE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                ["steps", "name", "type", "depends_on", "config", "retry", "timeout", "parameters", "x", 1]
            ),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=20,
)


@settings(max_examples=examples(60, 2000), deadline=None)
@given(st.one_of(TREE.map(yaml.safe_dump), st.text(max_size=200)))
def test_any_template_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(templates.TemplateInvalid, match=r"gcp/cost/x\.yaml"):
        templates.parse("gcp/cost/x.yaml", text)


@settings(max_examples=examples(100, 3000), deadline=None)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_any_dates_are_refused_or_in_order(day: str, start: str, end: str) -> None:
    try:
        dates = domain.parse_dates(day, start, end)
    except errors.InvalidArgument as refusal:
        assert refusal.reason.startswith("DATE")
        return
    assert dates is None or (dates[0] <= dates[1] and isinstance(dates[0], date))


@given(st.text(max_size=50))
def test_any_run_id_is_one_or_is_not_found(text: str) -> None:
    with contextlib.suppress(errors.NotFound):
        assert len(domain.check_run_id(text)) == 36


@settings(max_examples=examples(60, 2000), deadline=None)
@given(content=st.binary(max_size=300))
def test_any_first_line_is_a_header_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "header.csv"
    path.write_bytes(content)
    try:
        assert all(isinstance(name, str) for name in bounds.header(path))
    except bounds.Unbelievable as refusal:
        assert "SOURCE_FILE_INVALID" in refusal.of("x").reason
