"""Runs a benchmark: ``python -m benchmarks NAME``, whose options ``--help`` lists. Without a name: which there are."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

MODULES = {
    "quality": "quality.quality",
    "rate_distortion": "quality.rate_distortion",
    "blend": "quality.blend",
    "exactness": "quality.exactness",
    "recommend": "quality.recommend",
    "bundle": "quality.bundle",
    "sample_texts": "corpora.sample_texts",
    "ttft": "speed.ttft",
    "prefill": "speed.prefill",
    "memory": "speed.memory",
    "codecs": "speed.codecs",
    "decoding": "speed.decoding",
    "large": "speed.large",
    "serve": "serving.serve",
    "loading": "serving.loading",
    "tenants": "serving.tenants",
    "vllm": "serving.vllm",
    "lm_eval": "serving.harness",
    "pruning": "pruning.pruning",
    "pruned_speed": "pruning.pruned_speed",
    "reading_pages": "pruning.reading_pages",
    "prune_peers": "pruning.prune_peers",
    "peers": "peers.environments",
}
"""Name → module, which has ``main(argv)``. It is imported when it is run: each needs other packages."""


def main(argv: Sequence[str]) -> int:
    name, *rest = argv or [""]
    if name in MODULES:
        import_module(f"benchmarks.{MODULES[name]}").main(rest)
        return 0
    if name not in ("", "-h", "--help"):
        print(f"no benchmark is called {name}", file=sys.stderr)
    print("python -m benchmarks NAME [OPTIONS]\n")
    for known, module in MODULES.items():
        print(f"  {known:16} {summary(module)}")
    return 0 if name in ("", "-h", "--help") else 2


def summary(module: str) -> str:
    """The first paragraph of a module's docstring, read without importing it."""
    path = Path(__file__).parent / (module.replace(".", "/") + ".py")
    documentation = ast.get_docstring(ast.parse(path.read_text())) or ""
    return documentation.partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
