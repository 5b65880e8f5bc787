"""What kvpress's presses make of given keys, values and queries: scores, and what they keep.

build/peers/presses/bin/python benchmarks/peers/press_scores.py INPUT.safetensors OUTPUT.safetensors [--keep 0.3]
    [--window 32] [--beta 4] [--channels 0.4]

presses.py, whose environment it shares, runs whole presses inside a model; this runs them on tensors, for ``benchmarks
prune_peers``. INPUT has for each layer, in float32, ``layers.0000.keys`` [H, T, D] with RoPE applied at positions 0 to T,
``values`` [H, T, D], ``queries`` [Q, T, D] before RoPE, and of R tokens after them, which ask for the text and repeat it,
``replay_keys`` [H, R, D] and ``replay_queries`` [Q, R, D] in the same way. ``inv_freq`` [D/2] is the rotation of all layers.
``request`` [1] has the number of the R tokens that ask.

OUTPUT has ``scores.NAME.0000`` [H, T], ``kept.NAME.0000`` [H, T] bool, and for ThinK [H, D] bool. A press is called with an
attention layer that hands queries on as they are; nothing of a press is changed.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

MATCHED = 8
"""Channels by which a key that was kept is found among all: two tokens do not share that many numbers."""


class Rotary:
    """The angles of positions, as a model's own module gives them."""

    def __init__(self, inv_freq: Tensor) -> None:
        self.inv_freq = inv_freq

    def __call__(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self.inv_freq
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()


class Layer(torch.nn.Module):
    """What presses ask of an attention layer. Its hidden states are the queries before RoPE."""

    def __init__(self, index: int, n_layers: int, tensors: dict[str, Tensor], inv_freq: Tensor) -> None:
        super().__init__()
        self.keys, self.values = tensors["keys"][None], tensors["values"][None]
        self.queries, self.replay_queries = tensors["queries"][None], tensors["replay_queries"][None]
        self.replay_keys = tensors["replay_keys"][None]
        self.layer_idx, self.head_dim = index, self.keys.shape[-1]
        self.num_key_value_groups = self.queries.shape[1] // self.keys.shape[1]
        self.config = SimpleNamespace(
            num_attention_heads=self.queries.shape[1],
            num_key_value_heads=self.keys.shape[1],
            num_hidden_layers=n_layers,
            _attn_implementation="sdpa",
        )
        self.q_proj, self.rotary_emb = torch.nn.Identity(), Rotary(inv_freq)
        self.masked_key_indices: Any = None

    def call(self, function: Any, *, attentions: Tensor | None = None) -> Any:
        """``function`` of a press, as its forward hook calls it."""
        states = self.queries.transpose(1, 2).flatten(2)
        return function(
            self, states, self.keys.clone(), self.values.clone(), attentions, self._options(states, 0)
        )

    def attentions(self) -> Tensor:
        """The weights [1, Q, T, T] that the model's own eager attention gives."""
        tokens = self.keys.shape[2]
        cos, sin = self.rotary_emb(self.queries, torch.arange(tokens)[None])
        queries, _ = apply_rotary_pos_emb(self.queries, self.queries, cos, sin)
        mask = torch.full((tokens, tokens), torch.finfo(queries.dtype).min).triu(1)[None, None]
        scaling = self.head_dim**-0.5
        return eager_attention_forward(self, queries, self.keys, self.values, mask, scaling)[1]

    def replay(self, function: Any, *more: Any) -> Any:
        """``function`` of KVzip's press, over the keys with those of the replay after them."""
        states = self.replay_queries.transpose(1, 2).flatten(2)
        keys = torch.cat([self.keys, self.replay_keys], 2)
        return function(self, states, keys, *more, self._options(states, self.keys.shape[2]))

    def kept(self) -> Tensor:
        """[H, T]: what is not among the masked keys, of presses that mask."""
        kept = torch.ones(self.keys.shape[:3], dtype=torch.bool)
        kept[self.masked_key_indices] = False
        return kept[0]

    def _options(self, states: Tensor, start: int) -> dict[str, Any]:
        positions = torch.arange(start, start + states.shape[1])[None]
        return {"hidden_states": states, "position_embeddings": self.rotary_emb(states, positions)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--beta", type=float, default=4)
    parser.add_argument("--channels", type=float, default=0.4)
    args = parser.parse_args()
    given = load_file(args.input)
    names = sorted(name.removesuffix(".keys") for name in given if name.endswith(".keys"))
    sides = ("keys", "values", "queries", "replay_keys", "replay_queries")
    layers = [
        Layer(n, len(names), {side: given[f"{name}.{side}"] for side in sides}, given["inv_freq"])
        for n, name in enumerate(names)
    ]
    results = {}
    with torch.no_grad():
        for name, by_layer in {
            **token_presses(layers, args.keep, args.window, args.beta),
            **kvzip(layers, args.keep, int(given["request"])),
            "kept.think": [think(layer, args.channels, args.window) for layer in layers],
        }.items():
            for index, tensor in enumerate(by_layer):
                results[f"{name}.{index:04d}"] = tensor.contiguous()
    save_file(results, args.output, metadata={"kvpress": version("kvpress")})


def token_presses(layers: list[Layer], keep: float, window: int, beta: float) -> dict[str, list[Tensor]]:
    """Scores of presses that have some, and what each keeps."""
    drop = 1 - keep
    snapkv = kvpress.SnapKVPress(drop, window_size=window)
    scorers = {
        "knorm": kvpress.KnormPress(drop),
        "keydiff": kvpress.KeyDiffPress(drop),
        "streaming-llm": kvpress.StreamingLLMPress(drop),
        "snapkv": snapkv,
        "observed-attention": kvpress.ObservedAttentionPress(drop),
        "expected-attention": kvpress.ExpectedAttentionPress(drop),
    }
    results: dict[str, list[Tensor]] = {}
    for name, press in scorers.items():
        needed = [layer.attentions() if name == "observed-attention" else None for layer in layers]
        pairs = list(zip(layers, needed, strict=True))
        results[f"scores.{name}"] = [layer.call(press.score, attentions=x)[0] for layer, x in pairs]
        results[f"kept.{name}"] = [gathered(layer, press, x) for layer, x in pairs]
    pyramid = kvpress.PyramidKVPress(drop, window_size=window, beta=beta)
    results["kept.pyramidkv"] = [gathered(layer, pyramid) for layer in layers]
    adakv = kvpress.AdaKVPress(snapkv)
    for layer in layers:
        layer.call(adakv.compress)
    results["kept.adakv"] = [layer.kept() for layer in layers]
    return results


def gathered(layer: Layer, press: Any, attentions: Tensor | None = None) -> Tensor:
    """[H, T]: the tokens whose keys a press gives back."""
    keys, _ = layer.call(press.compress, attentions=attentions)
    return torch.stack(
        [
            (all_keys[:, None, :MATCHED] == kept[None, :, :MATCHED]).all(-1).any(1)
            for all_keys, kept in zip(layer.keys[0], keys[0], strict=True)
        ]
    )


def think(layer: Layer, share: float, window: int) -> Tensor:
    """[H, D]: the channels that are not zeroed."""
    keys, _ = layer.call(kvpress.ThinKPress(share, window_size=window).compress)
    return (keys[0] != 0).any(1)


def kvzip(layers: list[Layer], keep: float, request: int) -> dict[str, list[Tensor]]:
    """Scores of KVzip's press and what it keeps: as it is, and by the queries of the repeated tokens alone."""
    press, tokens = kvpress.KVzipPress(1 - keep), layers[0].keys.shape[2]
    model = SimpleNamespace(
        model=SimpleNamespace(layers=[SimpleNamespace(self_attn=layer) for layer in layers])
    )
    press.start_idx, press.end_idx, press.context_length = 0, tokens, tokens
    press.score_val = torch.zeros(len(layers), 1, *layers[0].keys.shape[1:3])
    repeated = []
    for layer in layers:
        layer.replay(press.score_kvzip, layer.values, None)
        weights = layer.replay(press._compute_cross_attention)
        repeated.append(weights[0, ..., request:, :tokens].amax((1, 2)))
    results = {}
    for name, by_layer in (("kvzip", list(press.score_val[:, 0])), ("kvzip-repeated", repeated)):
        results[f"scores.{name}"] = [scores.clone() for scores in by_layer]
        press.score_val = torch.stack(by_layer)[:, None].clone()
        press.compress_post(model)
        results[f"kept.{name}"] = [layer.kept() for layer in layers]
    return results


if __name__ == "__main__":
    main()
