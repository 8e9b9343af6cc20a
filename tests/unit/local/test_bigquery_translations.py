"""What the local BigQuery may take for the translation of a statement, and what it must translate anew."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import pytest

from deploy.local.bigquery_translations import Reference, Translations

TEXT = "SELECT t.a FROM x_staging_0123456789abcdef AS t WHERE t.b = @b"


@dataclass
class Context:
    project_id: str = "local"
    dataset_id: str | None = "acme"
    parameters: dict[str, str] = field(default_factory=lambda: {"b": "CAST($b AS BIGINT)"})
    values: dict[str, Any] = field(default_factory=lambda: {"b": 1, "unused": 2})
    temporary: set[str] = field(default_factory=set)
    functions: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    referenced: set[Reference] = field(default_factory=set)


@dataclass
class Tree:
    meta: dict[str, Any]


class Emulator:
    """Translates as the emulator does, as far as names go, and counts how often."""

    def __init__(self) -> None:
        self.translated = 0
        self.looks: dict[Reference, Hashable | None] = {}
        self.translations = Translations(self.translate, lambda reference: self.looks.get(reference, "as ever"))

    def translate(self, tree: Tree, context: Context) -> tuple[str, dict[str, Any]]:
        self.translated += 1
        text: str = tree.meta["text"]
        table = next(word for word in text.split() if "staging" in word)
        reference = (context.project_id, context.dataset_id or "none", table)
        context.referenced.add(reference)
        context.used.clear()
        context.used.add("b")
        named = ".".join(f'"{part}"' for part in reference)
        return text.replace(table, named).replace("@b", context.parameters["b"]), {"b": context.values["b"]}

    def send(
        self, text: str = TEXT, job: str | None = None, **given: Any
    ) -> tuple[str, dict[str, Any], set[Reference]]:
        context = Context(**given)
        self.translations.begin(job or text)
        sql, bound = self.translations.translate(Tree({"statement": text, "part": 0, "text": text}), context)
        return sql, bound, context.referenced


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


def test_another_tenants_run_sends_the_same_statement(emulator: Emulator) -> None:
    emulator.send()
    sql, bound, referenced = emulator.send(
        TEXT.replace("0123456789abcdef", "fedcba9876543210"), dataset_id="other", values={"b": 7, "unused": 2}
    )
    table = "x_staging_fedcba9876543210"
    assert sql == f'SELECT t.a FROM "local"."other"."{table}" AS t WHERE t.b = CAST($b AS BIGINT)'
    assert (bound, referenced, emulator.translated) == ({"b": 7}, {("local", "other", table)}, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"text": TEXT.replace("t.a", "t.c")},
        {"parameters": {"b": "CAST($b AS VARCHAR)"}},
        {"job": "DECLARE c STRING; " + TEXT},
        {"dataset_id": None},
        {"temporary": {"made"}},
        {"functions": {"f": "g"}},
        {"settings": {"time_zone": "UTC"}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_differs_is_translated(emulator: Emulator, given: dict[str, Any]) -> None:
    emulator.send()
    emulator.send(**given)
    assert emulator.translated == 2


def test_a_table_that_looks_different_is_another_table(emulator: Emulator) -> None:
    reference = ("local", "acme", "x_staging_0123456789abcdef")
    emulator.send()
    emulator.looks[reference] = "with a column more"
    emulator.send()
    emulator.send()
    assert emulator.translated == 2
    emulator.looks[reference] = None  # gone, expired, or under a policy
    emulator.send()
    emulator.send()
    assert emulator.translated == 4


@pytest.mark.parametrize("text", ["@@row_count", "INFORMATION_SCHEMA.TABLES", "`acme.events_*`", "TEMP TABLE"])
def test_what_holds_a_value_of_the_moment_is_translated_each_time(emulator: Emulator, text: str) -> None:
    for _ in range(2):
        emulator.send(f"{TEXT} /* {text} */")
    assert emulator.translated == 2


def test_who_names_its_dataset_otherwise_is_like_no_other(emulator: Emulator) -> None:
    by_name = TEXT + " -- rows of acme"
    emulator.send(by_name)
    emulator.send(by_name)
    assert emulator.translated == 1
    emulator.send(by_name, dataset_id="other")
    assert emulator.translated == 2
    assert '"local"."other"' in emulator.send(by_name, dataset_id="other")[0]


def test_a_scripts_variables_have_made_up_names_too(emulator: Emulator) -> None:
    for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        emulator.send(variables={"b": f'temp.main."__variable_{name}"'})
    assert emulator.translated == 1
