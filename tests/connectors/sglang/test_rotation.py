"""Keys are stored rotated: SGLang's own rotations against those of transformers, which kvtool's caches have."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sglang")

from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.layers.rotary_embedding.rope_variant import DeepseekScalingRotaryEmbedding
from transformers import DeepseekV2Config, DeepseekV3Config, LlamaConfig
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
from transformers.models.llama import modeling_llama as llama

from kvtool.codecs.rope import Rope
from kvtool.connectors.reading import LayerSpan
from tests.connectors.sglang.stores import LATENT

SIZE, TOKENS, LENGTH = LATENT["qk_rope_head_dim"], 200, 256
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "dynamic": {"factor": 4.0, "original_max_position_embeddings": 64},
}
DEEPSEEK = {"factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.8}


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, SGLang imports a kernel of vLLM's, though we call its own, plain code."""
    kernels = ModuleType("vllm._custom_ops")
    kernels.rotary_embedding = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", kernels)


def turned(rope: Any, states: Tensor) -> Tensor:
    return rope.forward_native(torch.arange(TOKENS), states.clone()[:, None], states.clone()[:, None])[1][
        :, 0
    ]


def in_pairs(states: Tensor) -> Tensor:
    """[T, D], as a span of halves gives it."""
    rope = Rope(tuple([1.0] * (SIZE // 2)), "half")
    return LayerSpan(0, 0, states[None], states[None], rope).interleaved_values()[0]


def parameters(kind: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_rope_are_the_same_or_refused(kind: str) -> None:
    states = torch.randn(TOKENS, SIZE)
    config = LlamaConfig(
        hidden_size=4 * SIZE,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        rope_parameters=parameters(kind, KINDS[kind]),
    )
    batch, positions = states[None, None], torch.arange(TOKENS)[None]
    _, expected = llama.apply_rotary_pos_emb(
        batch, batch, *llama.LlamaRotaryEmbedding(config)(batch, positions)
    )
    scaling = {"rope_type": kind, **KINDS[kind]} if KINDS[kind] else None
    rope = get_rope(SIZE, SIZE, LENGTH, 10000, True, scaling, dtype=torch.float32)
    is_same = torch.allclose(turned(rope, states), expected[0, 0], rtol=1e-5, atol=1e-5)
    assert is_same is (kind != "dynamic")


@pytest.mark.parametrize("is_scaled", [False, True])
def test_channels_of_latent_attention_are_in_sglangs_order(is_scaled: bool) -> None:
    states = torch.randn(TOKENS, SIZE)
    batch, positions = states[None, None], torch.arange(TOKENS)[None]
    more = {**DEEPSEEK, "original_max_position_embeddings": 64} if is_scaled else {}
    sizes: dict[str, Any] = {**LATENT, "max_position_embeddings": LENGTH}
    sizes["rope_parameters"] = parameters("yarn" if is_scaled else "default", more)
    if is_scaled:
        rope: Any = DeepseekScalingRotaryEmbedding(
            SIZE, SIZE, 64, 10000, False, DEEPSEEK["factor"], torch.float32, **_scaling(), device="cpu"
        )
    else:
        rope = get_rope(SIZE, SIZE, LENGTH, 10000, False, dtype=torch.float32)
    expected = turned(rope, states)
    _, keys = v3.apply_rotary_pos_emb_interleave(
        batch, batch, *v3.DeepseekV3RotaryEmbedding(DeepseekV3Config(**sizes))(batch, positions)
    )
    torch.testing.assert_close(in_pairs(keys[0, 0]), expected, rtol=1e-5, atol=1e-5)
    assert (keys[0, 0] - expected).abs().max() > 0.1
    _, keys = v2.apply_rotary_emb(
        batch, batch, v2.DeepseekV2RotaryEmbedding(DeepseekV2Config(**sizes))(batch, positions)
    )
    torch.testing.assert_close(keys[0, 0], expected, rtol=1e-5, atol=1e-5)


def _scaling() -> dict[str, Any]:
    return {name: value for name, value in DEEPSEEK.items() if name != "factor"}
