"""What vLLM has loaded, read from its configuration."""

from __future__ import annotations

from typing import Any

from kvtool.connectors.engine_model import EngineModel
from kvtool.errors import ModelError, UsageError

_RECOMPUTE = "recompute"


def refuse_unsuited(config: Any) -> None:
    """Raises ``UsageError`` for settings of the engine under which a cache could fail a request, or be put in wrong places."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    if transfer.kv_load_failure_policy != _RECOMPUTE:
        raise UsageError(
            f"kv_load_failure_policy {transfer.kv_load_failure_policy!r}",
            "would fail the requests whose cache cannot be loaded",
            f'add "kv_load_failure_policy": "{_RECOMPUTE}" to --kv-transfer-config',
        )
    for field in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if (size := getattr(parallel, field, 1)) > 1:
            reason = "spreads the tokens of a block over several GPUs, which the connector cannot do yet"
            raise UsageError(f"{field} {size}", reason, "leave it at 1")
    speculative = config.speculative_config
    if speculative is not None and getattr(speculative, "draft_model_config", None) is not None:
        raise UsageError(
            "speculative_config",
            "names a draft model, whose cache no store holds",
            'take a method without one, such as "ngram"',
        )


def engine_model(config: Any) -> EngineModel:
    """The model of a ``VllmConfig``. Raises ``ModelError``, naming the field, for one whose caches no store can hold."""
    model, load = config.model_config, config.load_config
    if str(load.load_format) == "dummy":
        raise ModelError(model.model, "has random weights (load_format dummy)")
    if model.hf_overrides:
        reason = f"is run with another config than its own (hf_overrides {model.hf_overrides})"
        raise ModelError(model.model, reason, "write them into its config.json, and prefill again")
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
    return bool(config.scheduler_config.enable_chunked_prefill)
