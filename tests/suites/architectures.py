"""Tiny configurations of every causal language model that transformers has, made from its own list of them."""

from __future__ import annotations

from typing import Any

import transformers as t
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families import EXPERTS, LATENT, SIZES, WINDOW

ARCHITECTURES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SMALL = {
    **SIZES,
    **LATENT,
    **EXPERTS,
    "num_key_value_heads": 2,
    "sliding_window": WINDOW,
    "rotary_dim": 8,
    "num_experts": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
"""Sizes by the names that configurations have for them; each takes those that it knows."""

OPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": DEFAULT_ROPE | {"mrope_section": [2, 1, 1]},
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48},
    },
    "doge": {"keep_window_size": WINDOW},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "gemma3n_text": {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 3},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_text": {
        "vocab_size_per_layer_input": 261,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
    },
    "gpt_neo": {
        "attention_types": [[["global", "local", "global"], 1]],
        "num_layers": 3,
        "window_size": WINDOW,
    },
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "hrm_text": {"H_cycles": 1, "L_cycles": 1},
    "lfm2_moe": {"layer_types": ["full_attention"] * 3, "rope_parameters": DEFAULT_ROPE},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax_m3_vl_text": {"index_block_size": 8, "index_topk_blocks": 1},
    "modernbert-decoder": {"local_attention": WINDOW},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [8, 24]},
    "roc_bert": {"pronunciation_vocab_size": 300, "shape_vocab_size": 300},
    "xlnet": {"d_head": 8, "n_layer": 3},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {"layer_types": ["linear_attention", "hybrid", "linear_attention"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a configuration needs besides, by its ``model_type``."""


def tiny_config(model_type: str) -> t.PreTrainedConfig:
    return shrunk(t.CONFIG_MAPPING[model_type])


def shrunk(kind: type[t.PreTrainedConfig], **options: Any) -> t.PreTrainedConfig:
    """A configuration of ``kind`` with small sizes, its parts too; ``options`` are those of the whole that it is part of."""
    options = OPTIONS.get(kind.model_type, {}) | options
    try:
        default = kind()
    except (ValueError, StrictDataclassError):
        default = kind(**options)
    known = default.to_dict()
    sizes = {kind.attribute_map.get(name, name): value for name, value in SMALL.items()}
    sizes = {name: value for name, value in sizes.items() if name in known}
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        sizes["num_key_value_heads"] = SMALL["num_attention_heads"]
    for name in kind.sub_configs:
        if part := getattr(default, name, None):
            options[name] = shrunk(type(part), **options.get(name, {})).to_dict()
    return kind(**sizes | options)
