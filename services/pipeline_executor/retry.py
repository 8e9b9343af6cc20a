"""How often something is tried, and how long to wait between: for the steps of a run and a reader's calls alike."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a step or a call is tried, and the bounds of the jittered pause between tries."""

    attempts: int
    base: timedelta
    cap: timedelta


def pause(retry: Retry, tries: int, jitter: float, retry_after: timedelta | None) -> timedelta:
    """How long to wait after the n-th try: full jitter below a doubling bound, never less than the error asks for."""
    bound = min(retry.cap, retry.base * float(1 << min(tries - 1, 30)))
    return max(bound * jitter, retry_after or timedelta(0))
