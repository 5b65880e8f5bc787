"""The safetensors container, written canonically: the same tensors and metadata give the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError

Entry: TypeAlias = "tuple[torch.dtype, tuple[int, ...]]"

ALIGNMENT = 64
PADDING = "pad."
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names of the dtypes that an artifact may hold."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, no NaN, UTF-8: one value, one spelling. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def nbytes(entry: Entry) -> int:
    """Bytes of a tensor of that dtype and shape."""
    dtype, shape = entry
    return math.prod(shape) * dtype.itemsize


def layout(tensors: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors in their order, with ``pad.0000``, … (uint8) where the next would be unaligned.

    safetensors allows no holes, so padding has to be a tensor; readers that map the file want every tensor at
    a multiple of its entries' size. Padding is zero bytes.
    """
    placed: dict[str, Entry] = {}
    offset = pads = 0
    for name, (dtype, shape) in tensors.items():
        if name.startswith(PADDING):
            raise CodecError(f"container: tensor {name!r}: names that start with {PADDING!r} are for padding")
        if gap := -offset % dtype.itemsize:
            placed[f"{PADDING}{pads:04d}"] = (torch.uint8, (gap,))
            offset, pads = offset + gap, pads + 1
        placed[name] = (dtype, shape)
        offset += nbytes((dtype, shape))
    return placed


def header(tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the payload: 8 bytes little-endian length, then compact JSON.

    ``__metadata__`` comes first, tensors follow in the given order without holes (``layout`` aligns them),
    and spaces at the end let the payload start at a multiple of 64 bytes. Raises CodecError for a dtype that
    safetensors or kvtool does not know.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in NAMES or name in entries:
            raise CodecError(f"container: tensor {name!r} of {dtype} cannot be stored")
        end = offset + nbytes((dtype, shape))
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def entries(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Dtype and shape of each tensor, in order."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's content as the container holds it: little-endian. No copy if it is contiguous."""
    data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return memoryview(data)


def byte_tensor(content: bytes) -> Tensor:
    """``content`` as a uint8 tensor of its own."""
    return _tensor(content, torch.uint8, (len(content),))


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A whole file: header, tensors in their order, padding. Raises CodecError for what cannot be stored."""
    placed = layout(entries(tensors))
    parts = [raw_bytes(tensors[n]) if n in tensors else bytes(nbytes(entry)) for n, entry in placed.items()]
    return b"".join([header(placed, metadata), *parts])


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, without padding, and metadata of what ``to_bytes`` wrote. Raises CodecError for any other bytes.

    Nothing larger than ``data`` is allocated. To be sure that the file holds nothing else, write it again and compare.
    """
    try:
        offset = 8 + int.from_bytes(data[:8], "little")
        found = json.loads(data[8:offset])
        metadata = {str(name): str(text) for name, text in found.pop("__metadata__").items()}
        tensors: dict[str, Tensor] = {}
        for name, entry in found.items():
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            if not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
                raise CodecError(f"container: tensor {name[:80]!r} has shape {str(shape)[:80]}")
            end = offset + nbytes((dtype, shape))
            if end > len(data):
                raise CodecError(f"container: tensor {name[:80]!r} is cut off")
            if not name.startswith(PADDING):
                tensors[name] = _tensor(data[offset:end], dtype, shape)
            offset = end
    except CodecError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise CodecError(f"container: is not a file of tensors ({type(error).__name__})") from error
    if offset != len(data):
        raise CodecError(f"container: has {len(data)} bytes, its header says {offset}")
    return tensors, metadata


def _tensor(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    # Copied: aligned, and not shared with the caller.
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
