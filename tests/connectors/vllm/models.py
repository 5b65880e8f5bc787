"""Tiny random models that both kvtool and vLLM run: their attention reads in particular places, so that caches matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

from kvtool.testing.tiny_model import make_tokenizer

WINDOW = 64
"""Of layers that have one: shorter than the documents."""

_SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 256,
    "tie_word_embeddings": False,
}


def _qwen3() -> Any:
    return t.Qwen3ForCausalLM(t.Qwen3Config(**_SIZES))


def _gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2
    config = t.Gemma3TextConfig(**_SIZES, sliding_window=WINDOW, layer_types=kinds)
    return t.Gemma3ForCausalLM(config)


def _deepseek() -> Any:
    # The sizes of one token's latent are those that vLLM computes with on a CPU.
    sizes = {name: size for name, size in _SIZES.items() if name != "head_dim"}
    return t.DeepseekV3ForCausalLM(
        t.DeepseekV3Config(
            **{**sizes, "num_key_value_heads": 4, "num_hidden_layers": 2},
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
            first_k_dense_replace=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
        )
    )


MODELS: dict[str, Callable[[], Any]] = {"qwen3": _qwen3, "gemma3": _gemma3, "deepseek": _deepseek}

FAMILIES = {
    "qwen3": "Qwen3",
    "gemma3": "Gemma 3 (sliding windows)",
    "deepseek": "DeepSeek V3 (latent attention)",
}
"""What each is an example of."""


def save(name: str, directory: Path) -> Path:
    """Saves the model and a tokenizer of bytes."""
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory
