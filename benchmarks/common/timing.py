"""Times of several runs, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable


def interleaved(
    runs: dict[str, Callable[[], float]], repeats: int, *, warm_up: bool = True
) -> dict[str, float]:
    """The median of each run's result over ``repeats`` rounds, in which every run has one turn."""
    results: dict[str, list[float]] = {name: [] for name in runs}
    if warm_up:
        for run in runs.values():
            run()
    for _ in range(repeats):
        for name, run in runs.items():
            results[name].append(run())
    return {name: statistics.median(values) for name, values in results.items()}
