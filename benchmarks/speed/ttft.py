"""Time to first token from a loaded cache, against a full prefill of the same tokens.

python -m benchmarks ttft [--repeats 5] [--tokens 1024 2048 4096]

Both ways run through ``kvtool.ask`` in one process with the model loaded; the rounds are interleaved and the ratio is
that of the medians. "cold" drops the artifact from the page cache before each load.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.timing import interleaved
from benchmarks.corpora.help_text import text_of
from kvtool.ask import ask
from kvtool.store.local import LocalStore

QUESTION = "Which of these statements can raise an exception?"
VARIANTS: dict[str, dict[str, Any]] = {
    "raw": {},
    "klt": {},
    "kivi": {"bits": 2},
    "cachegen": {},
    "cachegen-lmcache": {},
    "lossless": {},
}


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    arguments = parser.parse_args(argv)
    model = kvtool.load_model()
    print(machine())
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for tokens in arguments.tokens:
            name = f"{tokens}.txt"
            (Path(folder) / name).write_text(text_of(model, tokens))
            store = LocalStore(Path(folder) / f"store-{tokens}")
            kvtool.prefill([Path(folder) / name], model=model, store=store)
            for variant, parameters in VARIANTS.items():
                if variant != "raw":
                    kvtool.compress(store, recipe=variant, **parameters)
            runs: dict[str, Callable[[], float]] = {"full": _timed(model, store, name, cached=False)}
            for variant in VARIANTS:
                runs[variant] = _timed(model, store, name, variant=variant)
                runs[f"{variant} cold"] = _timed(model, store, name, variant=variant, cold=True)
            medians = interleaved(runs, arguments.repeats)
            for variant in VARIANTS:
                rows.append(
                    [
                        store[name].n_tokens,
                        variant,
                        f"{store.size(name, variant) / 1e6:.1f}",
                        f"{medians['full']:.2f}",
                        f"{medians[variant]:.3f}",
                        f"{medians['full'] / medians[variant]:.1f}",
                        f"{medians['full'] / medians[f'{variant} cold']:.1f}",
                    ]
                )
    print_table(["tokens", "variant", "MB", "full s", "cached s", "full / cached", "full / cold"], rows)


def _timed(
    model: kvtool.Model,
    store: LocalStore,
    name: str,
    *,
    variant: str = "raw",
    cached: bool = True,
    cold: bool = False,
) -> Callable[[], float]:
    def run() -> float:
        if cold:
            _drop(store.path_of(store[name].segments[0].variants[variant]))
        answer = ask(
            QUESTION, documents=name, model=model, store=store, variant=variant, cached=cached, max_tokens=1
        )
        return answer.first_token_seconds

    return run


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
