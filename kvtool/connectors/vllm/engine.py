"""What vLLM has loaded, read from its configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kvtool.connectors.engine_model import EngineModel
from kvtool.errors import ModelError

_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors")
"""Formats of weights that are the safetensors files which kvtool hashes."""


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
    dtype = str(model.dtype).removeprefix("torch.")
    loaded = EngineModel.at(
        model.model, dtype=dtype, revision=model.revision or "main", quantization=model.quantization
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
