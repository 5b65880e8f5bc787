"""Quality and size of every recipe and of other tools, on the same tensors.

python -m benchmarks quality [--peers build/peers] [--out build/benchmarks] [--write docs/results/recipes.md]

The figures are those of `kvtool eval`: quality.json and quality.html in --out, and a page in Markdown. Peers are the
tools whose environments `make peers` has made. They get each context's raw keys and values, and the same questions are
asked of what they give back. Measurements of an earlier run are used again. Times are always measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import Lines, machine
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.texts import held_out
from benchmarks.pages.quality_page import markdown
from benchmarks.peers.client import Peer, PeerError
from benchmarks.peers.environments import FOLDER, HERE, script
from kvtool.codecs import KV, LayerKV, recipes
from kvtool.digest import digest
from kvtool.engines.kv import append_kv
from kvtool.engines.transformers import new_cache
from kvtool.evaluation.candidates import Kind, Restored
from kvtool.evaluation.evaluation import evaluate
from kvtool.measurement.bench import Bench
from kvtool.measurement.scope import Scope
from kvtool.report.page import page
from kvtool.report.table import table

RECIPES = (*recipes(), "turboquant:objective=prod", "kivi:bits=4:recent=32", "klt:step=0.02")
"""Every recipe as its paper has it, TurboQuant's other variant, KIVI in 4 bits, which many take, and ``klt`` at a finer
setting.
"""

CALIBRATION_TOKENS = 1024
"""Of each text that recipes are calibrated with. These texts share no source with what is measured."""

PEERS: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "cachegen_lmcache": [("lmcache-cachegen", {})],
    "quantized_cache": [
        ("transformers-quanto", {"bits": 4}),
        ("transformers-quanto", {"bits": 2, "axis_key": -1}),
        ("transformers-hqq", {"bits": 4}),
    ],
    "turboquant": [("tiny-turboquant", {"bits": 4})],
    "presses": [("kvpress-snapkv", {}), ("kvpress-expected-attention", {})],
}
"""By script in peers/: methods and parameters."""


@dataclass(frozen=True)
class PeerCandidate:
    """One of a peer's methods as what ``evaluate`` compares."""

    peer: Peer
    method: str
    parameters: Mapping[str, Any]
    kind: Kind = "peer"
    variant: None = None

    @property
    def name(self) -> str:
        return ":".join([self.method, *(f"{name}={value}" for name, value in self.parameters.items())])

    @property
    def family(self) -> str:
        return self.method

    @property
    def summary(self) -> str:
        return f"{self.peer.methods[self.method].summary} ({self.peer.name} {self.peer.version})"

    @property
    def paper(self) -> str:
        return self.peer.methods[self.method].paper

    @property
    def identity(self) -> Any:
        code = [digest(path.read_bytes()) for path in sorted(HERE.glob("*.py"))]
        return ["peer", self.peer.name, self.peer.version, self.method, dict(self.parameters), code]

    def restore(self, bench: Bench) -> Restored:
        kv, prefix = bench.kv(), bench.prefix_kv
        none = torch.empty(0, dtype=torch.int32)
        given = {
            "token_ids": kv.token_ids.to(torch.int32),
            "prefix_ids": prefix.token_ids.to(torch.int32) if prefix else none,
        }
        for index, layer in enumerate(kv.layers):
            given |= {f"layers.{index:04d}.keys": layer.keys, f"layers.{index:04d}.values": layer.values}
        try:
            back = self.peer.restore(self.method, self.parameters, given, bench.model.directory)
        except PeerError as error:
            raise kvtool.KvtoolError(None, error) from error
        layers = [
            (back.tensors[f"layers.{n:04d}.keys"], back.tensors[f"layers.{n:04d}.values"])
            for n in range(len(kv.layers))
        ]
        parts = [prefix] if prefix and not back.covers_prefix else []
        tokens = layers[0][0].shape[1]
        parts.append(KV(tuple(LayerKV(k, v, torch.arange(tokens)) for k, v in layers), kv.token_ids, kv.rope))
        cache = new_cache(bench.model, sum(part.layers[0].keys.shape[1] for part in parts))
        for part in parts:
            append_kv(cache, part)
        whole = kv.n_tokens + (prefix.n_tokens if prefix else 0)
        position = None if cache.get_seq_length() == whole else whole
        # Of what is stored for prefix and segment together, the segment's share.
        nbytes = back.nbytes * kv.n_tokens // whole if back.covers_prefix else back.nbytes
        return Restored(cache, nbytes, back.encode_seconds, back.decode_seconds, position)


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--peers", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--documents", type=int, default=1, help="of each kind")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--haystacks", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run has measured")
    arguments = parser.parse_args(argv)
    print(machine(), flush=True)
    prefilled = Prefilled(kvtool.load_model())
    scope = Scope(context=1024, lengths=tuple(arguments.lengths), haystacks=arguments.haystacks)
    texts = held_out(prefilled.model, scope.context + scope.tokens + 8, arguments.documents)
    names = [ref.document for ref in prefilled.place(chain.from_iterable(texts.values()))]
    calibrated = [recipe.name for recipe in recipes().values() if recipe.fit]
    calibrations = [prefilled.calibrate(recipe, CALIBRATION_TOKENS) for recipe in calibrated]
    with ExitStack() as stack:
        evaluation = evaluate(
            prefilled.store,
            names,
            model=prefilled.model,
            recipes=arguments.recipes,
            scope=scope,
            others=list(_peers(stack, arguments.peers)),
            fresh=arguments.fresh,
            command=command("quality", argv),
            on_progress=Lines().measured,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "quality.json").write_text(json.dumps(evaluation, indent=1))
    (arguments.out / "quality.html").write_text(page(evaluation))
    if arguments.write:
        arguments.write.write_text(markdown(evaluation, calibrations))
    print(table(evaluation))


def _peers(stack: ExitStack, environments: Path) -> Iterator[PeerCandidate]:
    for name, methods in PEERS.items():
        python = environments / name / "bin" / "python"
        if not python.exists():
            print(f"{name}: no environment in {environments}; `make peers` makes it", flush=True)
            continue
        peer = stack.enter_context(Peer(python, script(name)))
        for method, parameters in methods:
            yield PeerCandidate(peer, method, parameters)
