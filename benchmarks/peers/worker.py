"""The loop of a peer's script: one request a line on stdin, one answer a line on stdout.

It runs in the peer's environment, with torch, safetensors and the standard library. Import it before the peer: from
then on, whatever a library prints goes to stderr, and stdout has answers alone.

The first line says what the peer is, unasked: ``{"peer", "version", "methods": {name: {"summary", "paper",
"parameters"}}}``, the last with the defaults. Then, for each request ``{"method", "parameters", "kv", "out", "repeats",
"model"}``, either ``{"bytes", "parts", "encode_seconds", "decode_seconds", "covers_prefix"}``, once the file ``out`` is
written, or ``{"error"}``. ``kv`` and ``out`` are safetensors files: ``token_ids`` [T] and ``prefix_ids`` [P] in int32,
and for each layer ``layers.0000.keys`` [H, T, D] and ``layers.0000.values`` [H, T, Dv] in float32, keys with RoPE
applied, without the prefix. ``bytes`` are all that would be stored; they are for prefix and segment together where
``covers_prefix``, as the tensors in ``out`` are then.
"""

from __future__ import annotations

import inspect
import json
import os
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

Layers = list[tuple[Tensor, Tensor]]
"""Keys [H, T, D] and values [H, T, Dv] of each layer."""


@dataclass(frozen=True)
class Request:
    """``layers`` in float16: what a peer keeps as it is then takes the 16 bits that it is counted with."""

    token_ids: Tensor
    prefix_ids: Tensor
    layers: Layers
    model: str


@dataclass(frozen=True)
class Restored:
    """``parts``: bytes that would be stored, by what they hold. Seconds are for all layers."""

    layers: Layers
    parts: dict[str, int]
    encode_seconds: float
    decode_seconds: float
    covers_prefix: bool = False


@dataclass(frozen=True)
class Method:
    """``run(request, **parameters)``; the parameters are keyword-only and have defaults. ``paper``: its arXiv id."""

    run: Callable[..., Restored]
    summary: str
    paper: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        given = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}

    def about(self) -> dict[str, Any]:
        return {"summary": self.summary, "paper": self.paper, "parameters": self.parameters}


def serve(peer: str, version: str, methods: dict[str, Method], *, warm_up: bool = True) -> None:
    """Answers until stdin ends. ``warm_up``: a method's first run compiles, and is done once more to be timed."""
    _write({"peer": peer, "version": version, "methods": {name: m.about() for name, m in methods.items()}})
    warm = set() if warm_up else set(methods)
    for line in sys.stdin:
        try:
            _write(_answer(json.loads(line), methods, warm))
        except Exception as error:
            traceback.print_exc()
            _write({"error": f"{type(error).__name__}: {error}"})


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def half(tensor: Tensor) -> Tensor:
    """``tensor`` in float16; ``ValueError`` rather than an infinity."""
    rounded = tensor.half()
    if not torch.isfinite(rounded).all():
        raise ValueError("the cache has values that float16 does not hold")
    return rounded


def _answer(request: dict[str, Any], methods: dict[str, Method], warm: set[str]) -> dict[str, Any]:
    name, parameters = request["method"], request["parameters"]
    if name not in methods:
        raise ValueError(f"no method {name}; there are {', '.join(methods)}")
    method = methods[name]
    unknown = sorted(set(parameters) - set(method.parameters))
    if unknown:
        raise ValueError(
            f"{name} has no parameter {unknown[0]}; it has {', '.join(method.parameters) or 'none'}"
        )
    given = _read(Path(request["kv"]), request["model"])
    if name not in warm:
        method.run(given, **parameters)
        warm.add(name)
    runs = [method.run(given, **parameters) for _ in range(request["repeats"])]
    tensors = {"token_ids": given.token_ids, "prefix_ids": given.prefix_ids}
    for index, (keys, values) in enumerate(runs[-1].layers):
        tensors[f"layers.{index:04d}.keys"] = keys.float().contiguous()
        tensors[f"layers.{index:04d}.values"] = values.float().contiguous()
    save_file(tensors, request["out"])
    return {
        "bytes": sum(runs[-1].parts.values()),
        "parts": runs[-1].parts,
        "encode_seconds": statistics.median(run.encode_seconds for run in runs),
        "decode_seconds": statistics.median(run.decode_seconds for run in runs),
        "covers_prefix": runs[-1].covers_prefix,
    }


def _read(path: Path, model: str) -> Request:
    tensors = load_file(path)
    names = sorted(name.removesuffix(".keys") for name in tensors if name.endswith(".keys"))
    layers = [(half(tensors[f"{name}.keys"]), half(tensors[f"{name}.values"])) for name in names]
    return Request(tensors["token_ids"], tensors["prefix_ids"], layers, model)


def _write(answer: dict[str, Any]) -> None:
    _ANSWERS.write(json.dumps(answer) + "\n")
    _ANSWERS.flush()
