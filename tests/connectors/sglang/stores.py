"""Stores of tiny random models, made where the tests run: kvtool's own prefill and compression, the engine's transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import kvtool
from kvtool.store.local import LocalStore
from kvtool.testing.tiny_model import make_tokenizer, save_model

DOCUMENT, OTHER = "harbour.txt", "bakery.txt"
TEXTS = {
    DOCUMENT: "Seven ships left the harbour, and six of them came back to it. " * 4,
    OTHER: "The baker opens at six; his rye loaf is the best of all of them. " * 3,
}
VARIANTS = ["raw", "kivi", "cachegen", "klt"]

LATENT = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 256,
}


def make_stores(folder: Path) -> Path:
    """``folder/NAME`` is a model, ``folder/NAME-kv`` its store."""
    save_model(folder / "tiny")
    save_model(folder / "other", seed=7)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    save_model(folder / "dynamic", rope_parameters=rope)
    _save_latent(folder / "deepseek_v3", transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM)
    _save_latent(folder / "deepseek_v2", transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    for model in ("tiny", "other", "deepseek_v3", "deepseek_v2"):
        _fill(folder, model, VARIANTS[1:] if model == "tiny" else ())
    return folder


def _fill(folder: Path, name: str, recipes: Any) -> None:
    model = kvtool.load_model(folder / name, device="cpu")
    store = LocalStore(folder / f"{name}-kv")
    kvtool.prefill([folder / text for text in TEXTS], model=model, store=store)
    for recipe in recipes:
        kvtool.compress(store, list(store), recipe=recipe, model=lambda: model)


def _save_latent(directory: Path, config: Any, model: Any) -> None:
    torch.manual_seed(0)
    model(config(**LATENT)).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
