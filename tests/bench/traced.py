"""What tracing costs: one read through a stack that sends its spans to a collector, and through one that sends none.

Both stacks run at once and are read in turns, the traced one through two gateways: one that traces as many requests as
in production, and one that traces all. The collector takes its CPU on the same machine, so elsewhere tracing
costs less. ``x_untraced`` is the rate beside the stack without, the middle of what each round gave; every second round
goes the other way round, for who comes later meets a machine that has changed. The goal for production is 0.9.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import edge
from tests.support.collector import collecting
from tests.support.stack import running

UNTRACED = "not traced"
_ROUNDS = 12
# The exporter's own period, and a little.
_SENT_SECONDS = 6


def measure() -> list[dict[str, Any]]:
    """One result per stack and number of connections."""
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as open_:
        folder = Path(made)
        collector = open_.enter_context(collecting())
        found: dict[str, tuple[edge.Variant, str]] = {}
        plain = open_.enter_context(running(folder / "plain"))
        traced = open_.enter_context(running(folder / "traced", CONVERGENCE_OTLP_ENDPOINT=collector.address))
        keys = {stack.path: stack.onboard().key for stack in (plain, traced)}
        for name, stack, percent in ((UNTRACED, plain, None), ("one in ten", traced, 10), ("all", traced, 100)):
            config = edge.unlimited(stack)
            if percent is not None:
                edge.manager(config)["tracing"]["random_sampling"] = {"value": percent}
            variant = open_.enter_context(edge.gateway(name, config, stack, folder))
            edge.wait(variant, keys[stack.path])
            found[name] = variant, keys[stack.path]
        runs: dict[tuple[str, int], list[dict[str, float]]] = {}
        for turn in range(_ROUNDS):
            for connections in edge.CONNECTIONS:
                for name, (variant, key) in list(found.items())[:: -1 if turn % 2 else 1]:
                    runs.setdefault((name, connections), []).append(edge.load(variant, key, connections, folder))
                    if name != UNTRACED:
                        # What it has not sent yet, it would send in the next one's time.
                        time.sleep(_SENT_SECONDS)
                        assert collector.spans, f"{name}: the stack has sent no span"
                        collector.spans.clear()
    middle = {key: {name: statistics.median(f[name] for f in all_) for name in all_[0]} for key, all_ in runs.items()}
    return [
        {
            "variant": name,
            "connections": connections,
            "requests_per_second": round(figures["rate"]),
            "p50_ms": round(figures["p50"], 2),
            "p99_ms": round(figures["p99"], 2),
            "cpu_us_per_request": round(figures["cpu"] * 1e6),
            "x_untraced": round(_beside(runs[name, connections], runs[UNTRACED, connections]), 2),
        }
        for (name, connections), figures in middle.items()
    ]


def _beside(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> float:
    return statistics.median(one["rate"] / other["rate"] for one, other in zip(ours, others, strict=True))
