"""What benchmarks print: the machine, progress, a table."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import torch
import transformers

from kvtool.calibration.learning import Progress as Calibrating
from kvtool.evaluation.run import Progress
from kvtool.prefilling.report import Report

EVERY = 15.0
"""Seconds between two lines of progress."""


def machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints columns that are as wide as their widest cell, aligned to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


class Lines:
    """Now and then a line: how much is done, and how long the rest takes at that speed."""

    def __init__(self) -> None:
        self.started = self.printed = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done and now - self.printed >= EVERY:
            self.printed = now
            seconds = (now - self.started) * (total - done) / done
            print(f"{done / total:4.0%} {what}; {seconds / 60:.0f} min left", flush=True)

    def measured(self, progress: Progress) -> None:
        self(progress.what, progress.done, progress.total)

    def prefilled(self, report: Report) -> None:
        self("prefilled", report.tokens, report.tokens_total)

    def calibrated(self, progress: Calibrating) -> None:
        if progress.settings_total:
            self("settings tried", progress.settings, progress.settings_total)
        elif progress.steps_total:
            self("learned", progress.steps, progress.steps_total)
        else:
            self("prefilled for the calibration", progress.tokens, progress.tokens_total)
