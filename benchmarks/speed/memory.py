"""Peak memory of prefilling one long document, against the model + the segment's KV + one step.

python -m benchmarks memory [--tokens 7000]

The model is the process once its weights are loaded and it has run; the KV is the size of the artifact; one step is
what a document of one step adds at its peak, less its own KV. Linux only (/proc).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.corpora.help_text import text_of
from kvtool.engines.transformers import STEP_TOKENS
from kvtool.measurement.peak_memory import status


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=7000)
    tokens = parser.parse_args(argv).tokens
    model = kvtool.load_model()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        _prefill(model, Path(folder), "warm-up", 64)
        resident = _status("VmRSS")
        step_peak, step_kv = _prefill(model, Path(folder), "step", STEP_TOKENS)
        step = step_peak - resident - step_kv
        peak, kv = _prefill(model, Path(folder), "long", tokens)
    stated = resident + kv + step
    print_table(
        ["", "MB"],
        [
            ["process with the model", f"{resident / 1e6:.0f}"],
            [f"KV of {tokens} tokens", f"{kv / 1e6:.0f}"],
            [f"one step of {STEP_TOKENS} tokens", f"{step / 1e6:.0f}"],
            ["stated: their sum", f"{stated / 1e6:.0f}"],
            ["measured peak", f"{peak / 1e6:.0f}"],
            ["measured / stated", f"{peak / stated:.3f}"],
        ],
    )


def _prefill(model: kvtool.Model, folder: Path, name: str, tokens: int) -> tuple[int, int]:
    """Peak memory of the process, and bytes of the artifact."""
    path = folder / f"{name}.txt"
    path.write_text(text_of(model, tokens))
    store = kvtool.Store(folder / f"store-{name}")
    # 5 resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    kvtool.prefill([path], model=model, store=store, pack_tokens=0)
    return _status("VmHWM"), store.size(path.name)


def _status(field: str) -> int:
    found = status(field)
    if found is None:
        raise SystemExit(f"/proc/self/status has no {field}")
    return found
