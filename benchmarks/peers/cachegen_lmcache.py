"""CacheGen as LMCache runs it, on a KV cache (a worker: see worker.py).

LMCache's own serializer encodes a chunk of tokens at a time, 256 by default, and the bytes are those it would store: a
pickle of the coded symbols, their lengths, a table of frequencies for each layer and channel, and each token's
maximum in float16. The tables alone are 2.2 bits a value in a chunk of 256 tokens. LMCache leaves the last,
shorter chunk out by default, to be computed again; here it is encoded, unless that takes more than its 16 bits a
value do. The anchors and deltas of the paper are not in LMCache.

The bins are LMCache's for a model it does not know by name: 32 for keys of layers 0-9 and values of layers 0-1, 16 for
the others; 32 throughout with fewer than 10 layers. It uses bins - 1 levels. It is made for GPUs: on the CPU it submits
each channel to a thread pool, and the compiled code holds the GIL, so that most of the time is Python's.
"""

from __future__ import annotations

import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker import Layers, Method, Request, Restored, nbytes, serve

# isort: split
import torch
from lmcache import torch_device_type
from lmcache.storage_backend.serde.cachegen_basics import CacheGenGPUEncoderOutput
from lmcache.storage_backend.serde.cachegen_decoder import CacheGenDeserializer
from lmcache.storage_backend.serde.cachegen_encoder import CacheGenSerializer
from torch import Tensor


def main() -> None:
    require_cpu()
    method = Method(cachegen, "CacheGen: a scale for each token, arithmetic coding by channel", "2310.07240")
    serve("LMCache", version("lmcache"), {"lmcache-cachegen": method})


def cachegen(request: Request, *, chunk: int = 256) -> Restored:
    kv = torch.stack([torch.stack(layer).transpose(1, 2) for layer in request.layers])
    chunks = [part.contiguous() for part in kv.split(chunk, dim=2)]
    serializer, deserializer = serde(len(kv), chunk, kv.dtype)
    started = time.perf_counter()
    stored: list[bytes | Tensor] = [serializer.to_bytes(part) for part in chunks]
    encoded = time.perf_counter()
    if chunks[-1].shape[2] < chunk and len(stored[-1]) > nbytes(chunks[-1]):
        stored[-1] = chunks[-1]
    ready = time.perf_counter()
    decoded = [deserializer.from_bytes(part) if isinstance(part, bytes) else part for part in stored]
    seconds = time.perf_counter() - ready
    return Restored(_layers(torch.cat(decoded, dim=2)), _parts(stored), encoded - started, seconds)


def require_cpu() -> None:
    if torch_device_type != "cpu":
        raise SystemExit(f"LMCache chose {torch_device_type}; hide the accelerator (CUDA_VISIBLE_DEVICES=)")


def serde(layers: int, chunk: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """LMCache's serializer and deserializer for a model it does not know by name: it reads config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model = {"model_type": "llama", "num_hidden_layers": layers}
        Path(folder, "config.json").write_text(json.dumps(model))
        config, metadata = SimpleNamespace(chunk_size=chunk), SimpleNamespace(model_name=folder)
        return CacheGenSerializer(config, metadata), CacheGenDeserializer(config, metadata, dtype)


def maxima(output: Any) -> Tensor:
    """Each token's maximum [layers, 2, tokens]."""
    return torch.stack((output.max_tensors_key, output.max_tensors_value), dim=1).squeeze(-1)


def sizes(stored: list[bytes]) -> dict[str, int]:
    """Bytes by what they hold; they add up to all of ``stored``."""
    outputs = [CacheGenGPUEncoderOutput.from_bytes(data) for data in stored]
    streams = [stream for output in outputs for stream in output.data_chunks]
    parts = {
        "codes": sum(stream.bytestream.nbytes for stream in streams),
        "lengths": sum(stream.bytestream_lengths.nbytes for stream in streams),
        "tables": sum(output.cdf.nbytes for output in outputs),
        "scales": sum(maxima(output).nbytes for output in outputs),
    }
    return {**parts, "pickle": sum(map(len, stored)) - sum(parts.values())}


def _parts(stored: list[bytes | Tensor]) -> dict[str, int]:
    parts = sizes([part for part in stored if isinstance(part, bytes)])
    return {**parts, "raw": nbytes(*(part for part in stored if isinstance(part, Tensor)))}


def _layers(kv: Tensor) -> Layers:
    """``kv`` [layers, 2, tokens, heads, head size]."""
    return [(keys, values) for keys, values in kv.transpose(2, 3)]


if __name__ == "__main__":
    main()
