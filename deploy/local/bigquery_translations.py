"""Statements that the local BigQuery has translated before are not translated again.

Putting one statement of a pipeline into DuckDB's words takes the emulator up to half a second of CPU, and each run of a
tenant sends the same statements, only to a dataset and to staging tables of its own. So what came out is kept, with
holes where those names were, for as long as the tables that it reads and writes look the same.
"""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

_KEPT = 1_000
# A made-up name: hexadecimal digits after an underscore, as of a staging table or of a script's variable.
_MADE_UP = re.compile(r"(?<=_)[0-9a-f]{12,}")
# What is put into the text itself when it is translated, or is different each time.
_OF_THE_MOMENT = re.compile(r"@@|INFORMATION_SCHEMA|EXTERNAL_QUERY|_SESSION|\*`|\bTEMP(ORARY)?\b", re.IGNORECASE)
_DATASET = "\x01"

type Reference = tuple[str, str, str]
type Look = Callable[[Reference], Hashable | None]


@dataclass(frozen=True)
class _Translation:
    """SQL with holes, the parameters that it uses, and the tables, as they looked when it was made."""

    sql: str
    used: frozenset[str]
    tables: tuple[Reference, ...]
    looks: tuple[Hashable, ...]


class Translations:
    """Translations by what they depend on; ``look`` tells what of a table matters, None if that may always change."""

    def __init__(self, translate: Callable[[Any, Any], tuple[str, dict[str, Any]]], look: Look) -> None:
        self._translate, self._look = translate, look
        self._kept: collections.OrderedDict[Hashable, _Translation] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._job = threading.local()

    def begin(self, text: str | None) -> None:
        """A job's whole text: the variables of its statements are declared there."""
        self._job.text = text or ""

    def translate(self, tree: Any, context: Any) -> tuple[str, dict[str, Any]]:
        """As the emulator's ``translate``: SQL for DuckDB and the parameters that it uses."""
        statement: str | None = tree.meta.get("statement")
        if statement is None or self._of_the_moment(statement, context):
            return self._translate(tree, context)
        names = _Names(context, self._job.text, statement)
        key = (
            names.hide(self._job.text),
            names.hide(statement),
            tree.meta.get("part"),
            names.own,
            tuple(sorted(context.parameters.items())),
            tuple(sorted((name, names.hide(table)) for name, table in context.variables.items())),
        )
        if (found := self._find(key, names)) is not None:
            context.used.clear()
            context.used.update(found.used)
            context.referenced.update(map(names.reference, found.tables))
            return names.show(found.sql), {name: context.values[name] for name in found.used}
        before = set(context.referenced)
        context.referenced.clear()
        try:
            sql, bound = self._translate(tree, context)
            self._keep(key, names, sql, frozenset(context.used), sorted(context.referenced))
            return sql, bound
        finally:
            context.referenced.update(before)

    def _of_the_moment(self, statement: str, context: Any) -> bool:
        return bool(context.temporary or context.functions or context.settings or _OF_THE_MOMENT.search(statement))

    def _find(self, key: Hashable, names: _Names) -> _Translation | None:
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or tuple(self._look(names.reference(table)) for table in kept.tables) != kept.looks:
            return None
        return kept

    def _keep(self, key: Hashable, names: _Names, sql: str, used: frozenset[str], tables: Sequence[Reference]) -> None:
        hidden, looks = names.hide(sql), tuple(map(self._look, tables))
        if None in looks or names.shown_in(hidden):
            return
        with self._lock:
            self._kept[key] = _Translation(hidden, used, tuple(map(names.hidden, tables)), looks)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


class _Names:
    """The names that are a job's own: where they are hidden, its text and its translation are like others."""

    def __init__(self, context: Any, text: str, statement: str) -> None:
        project, dataset = context.project_id, context.dataset_id
        found = _MADE_UP.findall(" ".join([text, *context.variables.values()]))
        self._made_up = {name: f"\x02{n}\x02" for n, name in enumerate(dict.fromkeys(found))}
        self._place, self._prefix = (project, dataset), f'"{project}"."{dataset}".'
        self._spoken = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in (project, dataset) if name))
        # A statement that names its project or dataset is like no other project's or dataset's.
        self.own = self._place if dataset is None or self._spoken.search(statement) else None

    def hide(self, text: str) -> str:
        """The text with holes."""
        text = _MADE_UP.sub(lambda match: self._made_up.get(match[0], match[0]), text)
        return text.replace(self._prefix, _DATASET)

    def show(self, text: str) -> str:
        """The text with these names in its holes."""
        for name, hole in self._made_up.items():
            text = text.replace(hole, name)
        return text.replace(_DATASET, self._prefix)

    def shown_in(self, hidden: str) -> bool:
        """True if the project or the dataset is named in another way than in a table's full name."""
        return self.own is None and bool(self._spoken.search(hidden))

    def hidden(self, table: Reference) -> Reference:
        """A table, its place a hole if it is the statement's default."""
        project, dataset = (_DATASET, _DATASET) if table[:2] == self._place else table[:2]
        return project, dataset, self.hide(table[2])

    def reference(self, hidden: Reference) -> Reference:
        """The table that ``hidden`` stands for here."""
        project, dataset = self._place if hidden[0] == _DATASET else hidden[:2]
        return project, dataset, self.show(hidden[2])
