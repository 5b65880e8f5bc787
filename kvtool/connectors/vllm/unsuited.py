"""Settings of vLLM with which the connector does not start.

It is imported before vLLM's workers have started, and so imports nothing that brings numba (see ``connector``).
"""

from __future__ import annotations

from typing import Any

from kvtool.errors import UsageError

_RECOMPUTE = "recompute"
_ROLES = ("kv_consumer", "kv_both")
_WITHOUT_CACHE = ("ngram", "ngram_gpu", "suffix")
"""Ways to guess tokens by what was said before, without a model."""


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
    if drafts_with_model(config):
        raise UsageError(
            f"speculative_config method {config.speculative_config.method!r}",
            "drafts with a model whose cache no store holds",
            f"take {' or '.join(_WITHOUT_CACHE)}",
        )


def drafts_with_model(config: Any) -> bool:
    """Whether tokens are guessed ahead by a model, which has a cache of its own."""
    speculative = config.speculative_config
    return speculative is not None and speculative.method not in _WITHOUT_CACHE
