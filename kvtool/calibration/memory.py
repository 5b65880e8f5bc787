"""Memory that calibrating takes: estimated from the first sample, and refused before it is spent."""

from __future__ import annotations

from kvtool.codecs import Geometry, Recipe
from kvtool.errors import UsageError
from kvtool.system.available_memory import available_memory

KEPT_BYTES = 8 << 30
"""The most bytes of all samples' keys and values in 16 bits. They stay in memory while a recipe goes over them."""


def needed_nbytes(recipe: Recipe, geometry: Geometry, tokens: int) -> int:
    """Bytes that ``recipe`` takes to learn from ``tokens`` tokens, of which ``geometry`` is some sample's, beside the model.

    Raises ``UsageError``, with what would do, if the samples take more than ``KEPT_BYTES`` or all more than there is.
    """
    by_token = 2 * geometry.n_elements / max(geometry.n_tokens, 1)
    needed = int(tokens * by_token) + recipe.fit_nbytes(geometry, tokens)
    if tokens * by_token > KEPT_BYTES:
        raise _too_many(
            tokens,
            f"take {tokens * by_token / 1e9:.1f} GB while they are learned from, at most {KEPT_BYTES / 1e9:.1f} are allowed",
            f"give {int(KEPT_BYTES / by_token)} or fewer to kvtool calibrate",
        )
    if needed > (available := available_memory()):
        raise _too_many(
            tokens,
            f"take {needed / 1e9:.1f} GB while they are learned from, and {available / 1e9:.1f} are free",
            "free memory, give fewer to kvtool calibrate",
        )
    return needed


def _too_many(tokens: int, what: str, remedy: str) -> UsageError:
    remedy += ", or compress with --recipe kivi, which needs no calibration"
    return UsageError("--tokens", f"{tokens} tokens {what}", remedy)
