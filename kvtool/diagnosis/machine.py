"""The machine: processor, memory, disk, GPU, and how fast caches are decoded on it."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from kvtool.codecs import KV, LayerKV, decode, encode
from kvtool.codecs.recipe_registry import recipe
from kvtool.diagnosis.finding import Finding
from kvtool.errors import first_line
from kvtool.kernels.dispatch import implementations
from kvtool.system.available_memory import available_memory
from kvtool.system.cache_dir import cache_dir

RECIPES = ("kivi", "cachegen")
"""Recipes without calibrations, whose kernels are the two that most others use."""

TOKENS, LAYERS, HEADS, CHANNELS = 1024, 4, 4, 64
SECONDS = 0.3
"""How long each is timed."""

LITTLE = 2e9
"""Bytes of memory or of disk below which there is little one can do."""


def machine() -> Iterator[Finding]:
    instructions = torch.backends.cpu.get_cpu_capability()
    detail = f"{torch.get_num_threads()} threads, {platform.machine()}, {instructions}"
    yield Finding("processor", "ok", detail)
    yield _bytes("memory", available_memory(), "close other programs, or use a smaller model")
    yield _gpu()
    yield _cache_directory()
    names = ", ".join(implementations())
    yield Finding("kernels", "ok", names)
    yield from speeds("cuda" if torch.cuda.is_available() and find_spec("triton") else "cpu")


def speeds(device: str) -> Iterator[Finding]:
    """How many bytes of a cache are decoded in a second on ``device``, from packed codes and from entropy coded ones."""
    kv = _example()
    nbytes = 2 * kv.n_elements
    for name in RECIPES:
        try:
            rate = nbytes * _decoded_a_second(kv, name, device)
        except Exception as error:  # Whatever a compiler or a driver raises, the other findings are wanted.
            detail = f"fails on {device} ({first_line(error)})"
            yield Finding(f"decoding {name}", "broken", detail, "tell kvtool's developers")
        else:
            yield Finding(f"decoding {name}", "ok", f"{rate / 1e9:.2f} GB a second on {device}")


def _decoded_a_second(kv: KV, name: str, device: str) -> float:
    """How often ``kv`` is decoded."""
    blob = encode(kv, recipe(name).build())
    decode(blob, torch.device(device))  # Compiles what is not compiled yet.
    started, rounds = time.monotonic(), 0
    while (seconds := time.monotonic() - started) < SECONDS:
        decode(blob, torch.device(device))
        if device == "cuda":
            torch.cuda.synchronize()
        rounds += 1
    return rounds / seconds


def _example() -> KV:
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(TOKENS)

    def side() -> torch.Tensor:
        return torch.randn(HEADS, TOKENS, CHANNELS, generator=generator).half()

    layers = tuple(LayerKV(side(), side(), positions) for _ in range(LAYERS))
    return KV(layers, torch.zeros(TOKENS, dtype=torch.int64), {"rope_theta": 10000.0, "rope_type": "default"})


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = (
            f"torch {torch.__version__} sees none"
            if built
            else f"torch {torch.__version__} is built for none"
        )
        return Finding("GPU", "missing", reason, "everything works without one, more slowly")
    properties = torch.cuda.get_device_properties(0)
    detail = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    if not find_spec("triton"):
        return Finding("GPU", "missing", f"{detail}, but no triton", "pip install 'kvtool[gpu]'")
    return Finding("GPU", "ok", detail)


def _cache_directory() -> Finding:
    folder = cache_dir()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding(
            "cache directory",
            "broken",
            f"{folder} cannot be written to",
            "set KVTOOL_CACHE_DIR to one that can",
        )
    free = _bytes("cache directory", shutil.disk_usage(there).free, f"make room on the disk of {there}")
    return Finding(
        "cache directory", free.state, f"{folder}, {_size(folder)} used, {free.detail}", free.remedy
    )


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    return f"{total / 1e9:.1f} GB"


def _bytes(subject: str, free: int, remedy: str) -> Finding:
    detail = f"{free / 1e9:.1f} GB free"
    return Finding(subject, "missing", detail, remedy) if free < LITTLE else Finding(subject, "ok", detail)
