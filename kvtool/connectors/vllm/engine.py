"""What vLLM has loaded, read from its configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kvtool.connectors.engine_model import EngineModel
from kvtool.errors import ModelError, UsageError

_RECOMPUTE = "recompute"
_ROLES = ("kv_consumer", "kv_both")
_WITHOUT_CACHE = ("ngram", "ngram_gpu", "suffix")
"""Ways to guess tokens by what was said before, without a model."""
_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors")
"""Formats of weights that are the safetensors files which kvtool hashes."""


def refuse_unsuited(config: Any) -> None:
    """Raises ``UsageError`` for settings of the engine under which a cache could fail a request, or be put in wrong places."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    if transfer.kv_load_failure_policy != _RECOMPUTE:
        raise UsageError(
            f"kv_load_failure_policy {transfer.kv_load_failure_policy!r}",
            "would fail the requests whose cache cannot be loaded",
            f'add "kv_load_failure_policy": "{_RECOMPUTE}" to --kv-transfer-config',
        )
    if transfer.kv_role not in _ROLES:
        # Of other roles vLLM gives blocks back that a step still writes.
        raise UsageError(f"kv_role {transfer.kv_role!r}", f"expected {' or '.join(_ROLES)}")
    for field in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if (size := getattr(parallel, field, 1)) > 1:
            reason = "spreads the tokens of a block over several GPUs, which the connector cannot do yet"
            raise UsageError(f"{field} {size}", reason, "leave it at 1")
    if config.speculative_config is not None and config.speculative_config.method not in _WITHOUT_CACHE:
        raise UsageError(
            f"speculative_config method {config.speculative_config.method!r}",
            "drafts with a model whose cache no store holds",
            f"take {' or '.join(_WITHOUT_CACHE)}",
        )


def engine_model(config: Any) -> EngineModel:
    """The model of a ``VllmConfig``. Raises ``ModelError``, naming the field, for one whose caches no store can hold."""
    model, load = config.model_config, config.load_config
    if (kind := str(load.load_format)) not in _FORMATS:
        reason = f"has weights that kvtool does not hash (load_format {kind})"
        raise ModelError(model.model, reason, f"take one of {', '.join(_FORMATS)}")
    for field in ("hf_overrides", "hf_config_path"):
        if value := getattr(model, field, None):
            reason = f"is run with another config than its own ({field} {value})"
            raise ModelError(model.model, reason, "write it into its config.json, and prefill again")
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true") and not Path(model.model).exists():
        raise ModelError(
            model.model, "comes from ModelScope, where kvtool does not look", "name its directory"
        )
    # A checkpoint that was saved quantized says so in its config, which has a digest.
    is_saved_so = getattr(model.hf_config, "quantization_config", None) is not None
    quantization = None if is_saved_so else model.quantization
    dtype = str(model.dtype).removeprefix("torch.")
    loaded = EngineModel.at(
        model.model, dtype=dtype, revision=model.revision or "main", quantization=quantization
    )
    if model.use_mla and not getattr(loaded.model.text_config, "rope_interleave", True):
        raise ModelError(
            model.model, "has rope_interleave false, and vLLM turns neighbouring channels together"
        )
    return loaded


def attends_to_loaded_tokens(config: Any) -> bool:
    """Whether a prompt's other tokens can be prefilled over a loaded cache; if not, it must have all but the last.

    vLLM's latent attention on a CPU prefills whole prompts only.
    """
    return not (config.model_config.use_mla and config.device_config.device_type == "cpu")


def applies_adapters_whole(config: Any) -> bool:
    """Whether an adapter changes all modules that it was trained for, as it did when documents were prefilled with it."""
    return not getattr(config.lora_config, "target_modules", None)
