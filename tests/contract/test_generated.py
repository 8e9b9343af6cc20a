"""``protos/gen`` is what ``make proto`` would write now, file for file."""

from __future__ import annotations

from pathlib import Path

from protos import generate

COMMITTED = Path(generate.PROTOS) / "gen"


def files(folder: Path) -> dict[str, bytes]:
    """Every generated file under a folder, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*_pb2*"))
        if path.suffix in (".py", ".pyi")
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    made, committed = files(tmp_path), files(COMMITTED)
    stale = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    assert made, "nothing was generated"
    assert stale == [], f"run `make proto` and commit: {stale}"
