"""One of a peer's methods as what an evaluation compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import kvtool
from benchmarks.peers.client import Peer, PeerError
from benchmarks.peers.environments import HERE
from kvtool.codecs import KV, LayerKV
from kvtool.digest import digest
from kvtool.engines.kv import append_kv
from kvtool.engines.transformers import new_cache
from kvtool.evaluation.candidates import Kind, Restored
from kvtool.measurement.bench import Bench


@dataclass(frozen=True)
class PeerCandidate:
    """A peer gets each context's raw keys and values, and is asked what it would store and what it gives back."""

    name: str
    peer: Peer
    method: str
    parameters: Mapping[str, Any]
    kind: Kind = "peer"
    variant: None = None

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
