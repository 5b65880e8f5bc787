"""What recipes and peers keep of what the model says, and how small they are, on the same tensors.

python -m benchmarks quality [--peers build/peers] [--out build/benchmarks] [--write docs/results/recipes.md]

The figures are `kvtool eval`'s own: quality.json and quality.html in --out, and a page in Markdown. Peers are those
whose environments `make peers` has made; they get each context's raw keys and values, and what they give back is asked
the same.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import Lines, machine
from benchmarks.corpora.six_documents import write_corpus
from benchmarks.pages.quality_page import markdown
from benchmarks.peers.client import Peer, PeerError
from benchmarks.peers.environments import HERE, script
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

RECIPES = (*(name for name, recipe in recipes().items() if not recipe.calibration), "kivi:bits=4:recent=32")
"""Every recipe as its paper has it, and KIVI in 4 bits, which many take. Those that learn a model first are compared in
``python -m benchmarks rate_distortion``."""

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
    parser.add_argument("--peers", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--haystacks", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args(argv)
    model = kvtool.load_model()
    print(machine(), flush=True)
    scope = Scope(context=1024, lengths=tuple(arguments.lengths), haystacks=arguments.haystacks)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = kvtool.Store(folder / "store")
        write_corpus(folder / "texts", model, scope.context + scope.tokens + 8)
        others = list(_peers(stack, arguments.peers))
        before = Path.cwd()
        os.chdir(folder / "texts")
        problems = kvtool.prefill(".", model=model, store=store).problems
        assert not problems, problems
        os.chdir(before)
        found = evaluate(
            store,
            model=model,
            recipes=arguments.recipes,
            scope=scope,
            others=others,
            fresh=arguments.fresh,
            command=command("quality", argv),
            on_progress=Lines().measured,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "quality.json").write_text(json.dumps(found, indent=1))
    (arguments.out / "quality.html").write_text(page(found))
    if arguments.write:
        arguments.write.write_text(markdown(found))
    print(table(found))


def _peers(stack: ExitStack, environments: Path) -> Any:
    for name, methods in PEERS.items():
        python = environments / name / "bin" / "python"
        if not python.exists():
            print(f"{name}: no environment in {environments}; `make peers` makes it", flush=True)
            continue
        peer = stack.enter_context(Peer(python, script(name)))
        for method, parameters in methods:
            yield PeerCandidate(peer, method, parameters)
