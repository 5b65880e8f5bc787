"""Tiny random models of every family. Adding a family is adding a line to ``FAMILIES``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import kvtool
from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.engines.cache import DocumentCache
from kvtool.store.local import LocalStore

WINDOW = 16
"""Small enough that a sliding window cuts off most of every document of these tests."""

SPECIAL = ["<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)

# Weights large enough that attention looks somewhere in particular, and answers depend on all of the document.
SIZES = {
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}

FAMILIES = {
    "llama": (t.LlamaConfig, {}),
    "llama3-rope": (t.LlamaConfig, {"rope_parameters": LLAMA3}),
    "qwen2": (t.Qwen2Config, {}),
    "qwen3": (t.Qwen3Config, {"head_dim": 8}),
    "mistral": (t.MistralConfig, {"sliding_window": WINDOW}),
    "gemma3": (t.Gemma3TextConfig, {"sliding_window": WINDOW, "layer_types": MIXED, "head_dim": 8}),
    "phi3": (t.Phi3Config, {}),
    "gpt-neox": (t.GPTNeoXConfig, {"rotary_pct": 0.25}),
    "gpt-oss": (t.GptOssConfig, {"sliding_window": WINDOW, "layer_types": MIXED, **EXPERTS}),
    "deepseek-v3": (t.DeepseekV3Config, LATENT),
}


def tokenizer(template: str | None = TEMPLATE) -> t.PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens(SPECIAL)
    whole.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", whole.token_to_id("<bos>"))]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<bos>", eos_token="<eos>", chat_template=template
    )


def save(directory: Path, config: t.PreTrainedConfig, template: str | None = TEMPLATE) -> Path:
    """A random model of ``config``, always the same one, with its tokenizer."""
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer(template).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model of a family, by its name in ``FAMILIES``."""

    @functools.cache
    def load(name: str) -> kvtool.Model:
        config, options = FAMILIES[name]
        return kvtool.load_model(save(tmp_path_factory.mktemp(name), config(**SIZES | options)))

    return load


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, model_of: Any) -> kvtool.Model:
    return model_of(request.param)


@pytest.fixture(scope="session")
def tiny(model_of: Any) -> kvtool.Model:
    return model_of("llama")


@pytest.fixture(scope="session")
def tiny_dir(tiny: kvtool.Model) -> Path:
    return tiny.directory


@pytest.fixture(scope="session")
def save_model() -> Any:
    return save


@pytest.fixture(scope="session")
def sizes() -> dict:  # type: ignore[type-arg]
    return SIZES


def loaded(model: kvtool.Model, parts: Sequence[Artifact]) -> tuple[DocumentCache, torch.Tensor]:
    """The cache of ``parts``, and the token ids of the last."""
    return load_cache(parts, model), parts[-1].token_ids


@pytest.fixture
def parts_of(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The artifacts of a document by a model, after its prefix; its text is the module's ``TEXT`` by default."""

    def make(model: kvtool.Model, text: str = request.module.TEXT, **options: Any) -> Any:
        (tmp_path / "doc.txt").write_text(text)
        store = LocalStore(tmp_path / "store")
        kvtool.prefill([tmp_path / "doc.txt"], model=model, store=store, **options)
        (name,) = store
        return store.parts(name)

    return make
