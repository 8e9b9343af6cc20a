"""This process's own folder for files between extraction and load, and the removal of those of processes that died.

A process holds a lock on its folder for as long as it lives; the kernel lets go of it however it dies. So a folder
whose lock is free belongs to nobody.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

_LOCK = ".lock"


class StagingFolder:
    """``path`` is this process's folder in ``parent``; it exists from ``claim`` to ``release``."""

    def __init__(self, parent: Path, name: str) -> None:
        self.path = parent / name
        self._parent = parent
        self._lock: IO[bytes] | None = None

    def claim(self) -> None:
        """Makes the folder, readable by this user only, and removes those that belong to nobody any more."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (self.path / _LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in self._parent.iterdir():
            if folder != self.path and (folder / _LOCK).is_file():
                _remove_if_free(folder)

    def release(self) -> None:
        """Removes the folder with all that is left in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _remove_if_free(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # Its process lives, or another one is removing it.


def process_name() -> str:
    """A random name for this process."""
    return os.urandom(16).hex()
