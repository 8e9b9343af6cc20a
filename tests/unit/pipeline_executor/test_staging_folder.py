"""A process's own folder: private, removed when it ends, and swept by the next process if it did not end well."""

from __future__ import annotations

import stat
from pathlib import Path

from services.pipeline_executor.staging import StagingFolder


def test_a_folder_is_private_and_goes_with_its_process(tmp_path: Path) -> None:
    folder = StagingFolder(tmp_path / "staging", "a")
    folder.claim()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (folder.path / "run-1").mkdir()
    folder.release()
    assert list((tmp_path / "staging").iterdir()) == []


def test_only_the_folders_of_the_dead_are_swept(tmp_path: Path) -> None:
    living, dead = StagingFolder(tmp_path, "living"), StagingFolder(tmp_path, "dead")
    living.claim()
    dead.claim()
    (dead.path / "rows.parquet").write_bytes(b"left over")
    assert dead._lock is not None
    dead._lock.close()  # What the kernel does when a process dies.
    stranger = tmp_path / "somebody's"
    stranger.mkdir()
    later = StagingFolder(tmp_path, "later")
    later.claim()
    assert {path.name for path in tmp_path.iterdir()} == {"living", "later", "somebody's"}
    living.release()
    later.release()
