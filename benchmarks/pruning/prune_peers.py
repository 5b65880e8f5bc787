"""kvtool's scores of tokens and what they keep, against kvpress's own code on the same tensors.

python -m benchmarks prune_peers [--peers build/peers] [--tokens 500] [--keep 0.3] [--write docs/results/pruning_peers.md]

The tensors are those of the embedded model over a text without a prefix. ``make peers`` makes kvpress's environment.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import machine
from benchmarks.corpora.help_text import text_of
from benchmarks.pages.tables import table
from benchmarks.peers.environments import FOLDER, HERE
from benchmarks.pruning.peer_tensors import Measured, measure
from kvtool.codecs.prune.budgets.budget import Budget, best
from kvtool.codecs.prune.budgets.heads import by_layer
from kvtool.codecs.prune.budgets.layers import pyramid
from kvtool.codecs.prune.scores.channels import think
from kvtool.codecs.prune.scores.inputs import WINDOW
from kvtool.codecs.prune.select import Select
from kvtool.model.chat_template import document_tokens

SCRIPT, ENVIRONMENT = HERE / "press_scores.py", "presses"
CHANNELS = 0.4
"""Share of the channels that ThinK drops: its paper's."""

BETA = 4.0
"""How steep PyramidKV's budgets are. With its default, 20, kvpress gives layers equal parts of a text this short."""

Tensors = list[Tensor]

PAGE = """# Pruning against kvpress

kvtool's own code scores and chooses tokens. This page holds it against [kvpress](https://github.com/NVIDIA/kvpress), which
has the same methods. Both got the same keys and values: those of the embedded model, {layers} layers over {tokens} tokens
without a prefix. kvpress got the queries too. kvtool collected what it needs of them in passes over the cache, as it does
when it compresses a document. This command makes the page, `make peers` the environment of kvpress:

`{command}`

{machine}, kvpress {version}.

- **scores**: the largest difference between the two scores of a token, divided by the largest score. Tokens that are always
  kept have no score that counts.
- **kept alike**: of the tokens (for ThinK, channels) that kvpress keeps at a share of {keep:g}, those that kvtool keeps
  too, over all layers and heads.

{table}

## What differs

{reasons}
"""


@dataclass(frozen=True)
class Press:
    """A press, and kvtool's side of it: ``scores`` and ``kept`` of all layers. ``reason`` says what differs.

    ``name`` is that of the peer's tensors. ``as_ours`` makes the peer's scores comparable with ours.
    """

    name: str
    recipe: str
    press: str
    reason: str
    select: Callable[[float], Select] | None = None
    kept: Callable[[Measured, float], Tensors] | None = None
    scored: bool = True
    as_ours: Callable[[Tensor], Tensor] = lambda scores: scores

    def our_scores(self, measured: Measured, keep: float) -> Tensors:
        assert self.select is not None
        stage = self.select(keep)
        layers = zip(measured.layers, measured.inputs, measured.ropes, strict=True)
        return [stage.scores(*layer) for layer in layers]

    def our_kept(self, measured: Measured, keep: float) -> Tensors:
        if self.kept is not None:
            return self.kept(measured, keep)
        assert self.select is not None
        return self.select(keep).choose(self.our_scores(measured, keep), measured.layers, measured.inputs)


def _summed(scores: Tensor) -> Tensor:
    """Mean weights → sums: a token is seen by itself and all tokens after it."""
    return scores * torch.arange(scores.shape[1], 0, -1)


def _pyramid(measured: Measured, keep: float) -> Tensors:
    stage, budget = Select("snapkv", keep=keep), Budget(keep, sinks=0, recent=0)
    scores = [stage.scores(*x) for x in zip(measured.layers, measured.inputs, measured.ropes, strict=True)]
    return by_layer(scores, budget, pyramid(scores, budget, BETA))


def _channels(measured: Measured, keep: float) -> Tensors:
    kept = []
    for layer, inputs in zip(measured.layers, measured.inputs, strict=True):
        scores = think(layer, inputs)
        n = scores.shape[1] - int(scores.shape[1] * CHANNELS)
        kept.append(best(scores, torch.zeros(scores.shape[1], dtype=torch.bool), n))
    return kept


NOTHING = "Nothing but the order of sums."
PRESSES = (
    Press("knorm", "l2-norm", "KnormPress", NOTHING, lambda keep: Select("l2-norm", keep=keep)),
    Press("keydiff", "keydiff", "KeyDiffPress", NOTHING, lambda keep: Select("keydiff", keep=keep)),
    Press(
        "streaming-llm",
        "streaming-llm",
        "StreamingLLMPress",
        "kvpress's scores are one for what stays and zero for the rest, kvtool's are places. What stays is the same.",
        lambda keep: Select("streaming-llm", keep=keep, sinks=4),
        scored=False,
    ),
    Press(
        "snapkv",
        "snapkv",
        "SnapKVPress",
        "Nothing but the order of sums. The window is 32 tokens in both; kvpress's default is 64.",
        lambda keep: Select("snapkv", keep=keep),
    ),
    Press(
        "observed-attention",
        "h2o",
        "ObservedAttentionPress",
        "kvpress divides what a token receives by the number of tokens that see it. H2O's authors sum, and so does kvtool. "
        "Scores are compared after kvpress's are multiplied by that number. The tokens that stay differ for this reason.",
        lambda keep: Select("h2o", keep=keep),
        as_ours=_summed,
    ),
    Press(
        "expected-attention",
        "expected-attention",
        "ExpectedAttentionPress",
        "Nothing but the order of sums.",
        lambda keep: Select("expected-attention", keep=keep),
    ),
    Press(
        "kvzip",
        "kvzip",
        "KVzipPress",
        "kvpress takes the largest weight over all tokens that are fed, those of the request to repeat too. These look at "
        "the tokens just before them, which are the segment's last. kvtool leaves them out.",
        lambda keep: Select("kvzip", "across", keep=keep, sinks=4),
    ),
    Press(
        "kvzip-repeated",
        "kvzip",
        "KVzipPress, the repeated tokens alone",
        "Nothing but the order of sums: kvpress's weights, without those of the request.",
        lambda keep: Select("kvzip", "across", keep=keep, sinks=4),
    ),
    Press(
        "adakv",
        "ada-kv",
        "AdaKVPress of SnapKVPress",
        "kvpress gives each head first the best fifth of an equal part, and then the layer's best. kvtool follows the "
        "authors' code: a head's part is four fifths of its number among the layer's best, and a fifth of an equal part.",
        lambda keep: Select("snapkv", "ada-kv", keep=keep),
        scored=False,
    ),
    Press(
        "pyramidkv",
        "pyramidkv",
        "PyramidKVPress",
        f"Budgets are rounded otherwise: kvtool's sum to the budget exactly. Both have beta={BETA:g} here. With the default, "
        "20, kvpress gives all layers the same where the last would have less than the window, as in a text this short.",
        kept=_pyramid,
        scored=False,
    ),
    Press(
        "think",
        "scores.channels.think",
        "ThinKPress",
        f"Nothing: these are channels of keys, {CHANNELS:.0%} of which are dropped.",
        kept=_channels,
        scored=False,
    ),
)
"""Presses for which kvtool has a method. Others of kvpress need what was trained, or are of methods kvtool has not."""


@dataclass(frozen=True)
class Row:
    """``scores`` is None where there are none to compare."""

    press: Press
    scores: float | None
    alike: float


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    model = kvtool.load_model()
    ids = document_tokens(model, text_of(model, arguments.tokens))[: arguments.tokens]
    measured = measure(model, ids)
    theirs, version = run_peer(measured, _python(arguments.peers), arguments.keep)
    rows = compare(measured, theirs, arguments.keep)
    page = PAGE.format(
        command=arguments.command,
        machine=machine(),
        version=version,
        layers=len(measured.layers),
        tokens=len(ids),
        keep=arguments.keep,
        table=table(("kvtool", "kvpress", "scores", "kept alike"), [_cells(row) for row in rows]),
        reasons="\n".join(f"- {row.press.press}: {row.press.reason}" for row in rows),
    )
    print(page)
    if arguments.write:
        arguments.write.write_text(page)


def run_peer(
    measured: Measured, python: Path, keep: float, script: Path | None = None
) -> tuple[dict[str, Tensor], str]:
    """The peer's tensors by name, and its version. Raises ``KvtoolError`` with its last words if it fails."""
    if not python.exists():
        raise kvtool.KvtoolError(python, "there is no such environment", "make it with `make peers`")
    with tempfile.TemporaryDirectory(prefix="kvtool-peer-") as folder:
        given, out = (Path(folder) / f"{name}.safetensors" for name in ("in", "out"))
        save_file({name: tensor.clone() for name, tensor in measured.given.items()}, given)
        settings = {"--keep": keep, "--window": WINDOW, "--beta": BETA, "--channels": CHANNELS}
        options = [str(part) for pair in settings.items() for part in pair]
        done = subprocess.run(
            [str(python), "-E", str(script or SCRIPT), str(given), str(out), *options],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = "\n".join(done.stderr.splitlines()[-20:])
            raise kvtool.KvtoolError(
                script or SCRIPT, f"ended with exit code {done.returncode}\n{last}", "see its last lines"
            )
        with safe_open(out, "pt") as file:
            version = (file.metadata() or {}).get("kvpress", "")
        return load_file(out), version


def compare(measured: Measured, theirs: Mapping[str, Tensor], keep: float) -> list[Row]:
    """A row for each of ``PRESSES``."""
    rows = []
    for press in PRESSES:
        kept = _by_layer(theirs, f"kept.{press.name}", len(measured.layers))
        scores = None
        if press.scored:
            peer_scores = _by_layer(theirs, f"scores.{press.name}", len(measured.layers))
            scores = largest_difference(press.our_scores(measured, keep), [*map(press.as_ours, peer_scores)])
        rows.append(Row(press, scores, kept_alike(press.our_kept(measured, keep), kept)))
    return rows


def largest_difference(ours: Tensors, theirs: Tensors) -> float:
    """Over all tokens that ours gives a finite score, relative to the largest score of a layer."""
    differences = []
    for a, b in zip(ours, theirs, strict=True):
        counts = a.isfinite()
        differences.append(float((a - b)[counts].abs().max() / a[counts].abs().max()))
    return max(differences)


def kept_alike(ours: Tensors, theirs: Tensors) -> float:
    """The share of what the peer keeps that ours keeps too."""
    both = sum(int((a.expand_as(b) & b).sum()) for a, b in zip(ours, theirs, strict=True))
    return both / sum(int(b.sum()) for b in theirs)


def _by_layer(tensors: Mapping[str, Tensor], name: str, n_layers: int) -> Tensors:
    return [tensors[f"{name}.{n:04d}"] for n in range(n_layers)]


def _cells(row: Row) -> list[str]:
    scores = "" if row.scores is None else f"{row.scores:.1e}"
    return [f"`{row.press.recipe}`", row.press.press, scores, f"{row.alike:.2%}"]


def _python(environments: Path) -> Path:
    return environments / ENVIRONMENT / "bin" / "python"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--peers", type=Path, default=FOLDER, help="where `make peers` made environments")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--write", type=Path, help="the page")
    arguments = parser.parse_args(argv)
    arguments.command = command("prune_peers", argv)
    return arguments
