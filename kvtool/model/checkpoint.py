"""Files that transformers would load by itself, though no digest of the identity covers them.

A cache of a model with such files could be taken for one of the model without them, so the model is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.configuration_utils import get_configuration_file
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, find_adapter_config_file

from kvtool.errors import ModelError

try:
    from transformers.distributed.checkpoint import is_sharded_checkpoint
except ImportError:  # Before 5.20, transformers loads none.

    def is_sharded_checkpoint(path: Path) -> bool:
        return False


_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_TOKENIZER, _WEIGHTS = "tokenizer.json", "model.safetensors"
_OF_MORE_FILES = ("XLORA", "SHADOW")
"""Adapters that name others, or a model, in their config."""


def refuse_uncovered(directory: Path) -> None:
    """Raises ``ModelError`` for a directory from which transformers would load more, or other files, than are hashed."""
    if find_adapter_config_file(str(directory)):
        raise ModelError(
            directory,
            "holds adapter_config.json, an adapter that transformers would apply by itself",
            "move the adapter's files to a directory of their own, and name it with --adapter if it is wanted",
        )
    if is_sharded_checkpoint(directory):
        raise ModelError(
            directory,
            "holds a distributed checkpoint (shard-…-model-….safetensors), which transformers loads in place of "
            f"{_WEIGHTS}",
            "save the model again with its save_pretrained()",
        )
    config, tokenizer_config = (_fields(directory / name) for name in (_CONFIG, _TOKENIZER_CONFIG))
    _expect(directory / _CONFIG, "transformers_weights", config.get("transformers_weights"), _WEIGHTS)
    if files := config.get("configuration_files"):
        _expect(directory / _CONFIG, "configuration_files", get_configuration_file(files), _CONFIG)
    if files := tokenizer_config.get("fast_tokenizer_files"):
        chosen = transformers.tokenization_utils_base.get_fast_tokenizer_file(files)
        _expect(directory / _TOKENIZER_CONFIG, "fast_tokenizer_files", chosen, _TOKENIZER)


def check_adapter(directory: Path) -> None:
    """Raises ``ModelError`` for an adapter that lacks files, or at whose load peft uses more than its files."""
    for file in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME):
        if not (directory / file).is_file():
            raise ModelError(directory, f"has no {file}", "name a PEFT adapter's directory")
    path = directory / ADAPTER_CONFIG_NAME
    fields = _fields(path)
    if (kind := fields.get("peft_type")) in _OF_MORE_FILES:
        reason = f"peft_type {kind} makes peft load other adapters or models, which no fingerprint covers"
        raise ModelError(path, reason, "use an adapter whose directory holds all of it, such as LoRA")
    if "_niter_" in str(start := fields.get("init_lora_weights")):
        reason = (
            f"init_lora_weights {start} makes peft change the model's weights by random numbers at each load"
        )
        raise ModelError(path, reason, "let peft's save_pretrained() convert the adapter to plain LoRA")


def _expect(path: Path, field: str, chosen: str | None, expected: str) -> None:
    if chosen not in (None, expected):
        reason = f"{field} makes transformers load {chosen}, kvtool expected {expected}"
        raise ModelError(path, reason, f"remove the field, or save {chosen} as {expected}")


def _fields(path: Path) -> dict[str, Any]:
    """A JSON file's fields; none where it is missing or broken, which those who load it report."""
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
