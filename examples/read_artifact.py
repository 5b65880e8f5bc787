"""Reads kvtool's artifacts, raw ones and those of the recipe kivi, without kvtool: from docs/reference/artifact.md alone.

python examples/read_artifact.py FILE.safetensors     needs numpy and blake3
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

Array = Any
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U8": "u1"}
GEOMETRY = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read(path: Path) -> tuple[dict[str, Any], Array, list[tuple[Array, Array]]]:
    """The metadata, token ids [T], and each layer's keys [H, T, D] and values [H, T, Dv] as float32.

    Raises ValueError for a file that is not what was written, and for stages that this program does not know.
    """
    metadata, tensors = checked(path.read_bytes())
    layers: list[tuple[Array, Array]] = []
    geometry = metadata["geometry"]
    sizes = [run for run in geometry["layers"] for _ in range(run["count"])]
    for index, layer in enumerate(sizes):
        sides = []
        for side in ("keys", "values"):
            heads, channels = layer[side]
            stages = metadata["pipeline"].get(side, [])
            name = f"layers.{index:04d}.{side}"
            if not stages:
                sides.append(as_float(*tensors[name]))
                continue
            parts = {
                key.removeprefix(f"{name}."): value
                for key, value in tensors.items()
                if key.startswith(f"{name}.")
            }
            sides.append(decoded(parts, stages, (heads, layer["tokens"], channels), geometry["dtype"]))
        layers.append((sides[0], sides[1]))
    return metadata, tensors["token_ids"][0], layers


def checked(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[Array, str]]]:
    """The metadata, and each tensor with safetensors' name of its dtype. Every byte is checked."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = json.loads(header.pop("__metadata__")["kvtool"])
    if metadata["format"] > 1:
        raise ValueError(f"format {metadata['format']}, this program reads 1")
    if written(header, metadata) != data[:start]:
        raise ValueError("the header is not canonical")
    unsigned = {key: value for key, value in metadata.items() if key != "digest"}
    if blake3(written(header, unsigned)).hexdigest() != metadata["digest"]:
        raise ValueError("the header has changed")
    tensors = {}
    for name, entry in header.items():
        first, stop = entry["data_offsets"]
        content = data[start + first : start + stop]
        if name.startswith("pad."):
            if any(content):
                raise ValueError(f"{name} is not zero")
            continue
        if blake3(content).hexdigest() != metadata["tensors"][name]:
            raise ValueError(f"{name} has changed")
        array = np.frombuffer(content, DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = (array, entry["dtype"])
    if tensors.keys() != metadata["tensors"].keys():
        raise ValueError("tensors are missing")
    return metadata, tensors


def written(header: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """A header as kvtool writes it."""
    inner = json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    outer = {"__metadata__": {"kvtool": inner}, **header}
    text = json.dumps(outer, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def as_float(array: Array, dtype: str) -> Array:
    """Any dtype of keys and values as float32."""
    if dtype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4")


def rounded(array: Array, dtype: str) -> Array:
    """float32 rounded to the dtype that the model ran in, half to even, and still float32."""
    if dtype == "float16":
        return array.astype("<f2").astype("<f4")
    if dtype == "bfloat16":
        bits = array.view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view("<f4")
    return array


def decoded(
    parts: Mapping[str, tuple[Array, str]],
    stages: list[dict[str, Any]],
    shape: tuple[int, int, int],
    dtype: str,
) -> Array:
    """One side of a layer: the stages window, group and pack, undone from the last to the first."""
    names = [(stage["name"], stage["version"]) for stage in stages]
    if names[-2:] != [("group", 2), ("pack", 1)] or names[:-2] not in ([], [("window", 1)]):
        raise ValueError(f"stages {names} are not those of kivi")
    window, group = ({"sinks": 0, "recent": 0, **stages[0]}, stages[-2])
    heads, tokens, channels = shape
    sinks = min(window["sinks"], tokens)
    recent = min(window["recent"], tokens - sinks)
    between = (heads, tokens - sinks - recent, channels)
    codes = unpacked(parts["codes"][0], int(np.prod(between)), group["bits"]).reshape(between)
    axis = {"token": 1, "channel": 2}[group["axis"]]
    scale, zero = (
        np.take(as_float(*parts[name]), np.arange(between[axis]) // group["group"], axis)
        for name in ("scale", "zero")
    )
    middle = rounded(codes.astype("<f4") * scale + zero, dtype)
    ends = {name: as_float(*parts[name]) for name in ("sinks", "recent") if name in parts}
    every = [ends["sinks"]] if "sinks" in ends else []
    return np.concatenate([*every, middle, *([ends["recent"]] if "recent" in ends else [])], 1)


def unpacked(data: Array, n: int, bits: int) -> Array:
    """``n`` codes: a section for each power of two in ``bits``, the widest first, which holds the lowest bits."""
    codes, shift, start = np.zeros(n, np.uint8), 0, 0
    for width in (w for w in (8, 4, 2, 1) if bits & w):
        size = -(-n * width // 8)
        section = data[start : start + size]
        runs = [(section >> (width * run)) & ((1 << width) - 1) for run in range(8 // width)]
        codes |= np.concatenate(runs)[:n].astype(np.uint8) << shift
        shift, start = shift + width, start + size
    return codes


if __name__ == "__main__":
    metadata, token_ids, layers = read(Path(sys.argv[1]))
    print(
        f"{metadata['source']['document']}: {len(token_ids)} tokens, {len(layers)} layers, keys {layers[0][0].shape}"
    )
