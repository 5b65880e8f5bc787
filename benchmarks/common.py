"""What the benchmarks share: text, medians, a table."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pydoc_data.topics import topics

import torch
import transformers

import kvtool
from kvtool.model.chat_template import document_tokens


def text_of(model: kvtool.Model, tokens: int, *, skip: int = 0) -> str:
    """Prose of about ``tokens`` tokens: Python's own help texts, from token ``skip`` on."""
    whole = "\n\n".join(topics[name] for name in sorted(topics))
    ids = document_tokens(model, whole[: (skip + tokens) * 8])[skip : skip + tokens]
    return str(model.tokenizer.decode(ids))


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


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``kvtool serve-cache`` with ``options`` as a process of its own, and its address, which ends in /v1."""
    command = [sys.executable, "-m", "kvtool", "serve-cache", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "/v1 (" in line:
                    break
            else:
                raise RuntimeError("".join(said))
            # What else it says must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, line.split(" (")[0].rpartition(" ")[2]
        finally:
            process.terminate()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
