"""A random model of two layers with a tokenizer of bytes: no download, milliseconds a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(*extra: str, template: str | None = TEMPLATE) -> Any:
    """Bytes as tokens, no merges; ``extra`` are further special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|system|>", "<|user|>", "<|assistant|>", *extra]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", extra_special_tokens=special
    )
    fast.chat_template = template
    return fast


def save_model(directory: Path, *, seed: int = 0, shard: str | None = None, **config: Any) -> Path:
    """Saves a random Llama and its tokenizer in ``directory``. ``config`` changes its sizes, ``shard`` its files'."""
    defaults: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 256,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**defaults | config))
    model.save_pretrained(directory, **({"max_shard_size": shard} if shard else {}))
    make_tokenizer().save_pretrained(directory)
    return directory
