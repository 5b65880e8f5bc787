"""Which tokens to recompute: each policy gives every token a score, and those that score highest are recomputed.

A policy is a function from what is ``Known`` to scores [N] float32. Only the order of the scores matters, and only among
``known.candidates``. Adding one is adding a function and a line to ``POLICIES``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.artifact.scores import NEED, SPREAD
from kvtool.blending.policy_inputs import Known
from kvtool.engines.cache import Parallel
from kvtool.errors import UsageError

DEFAULT = "drift"

CHECKED = 1
"""The layer at which CacheBlend compares: the first one whose values depend on what stands before a token."""

APE = Parallel(temperature=0.9, scale=0.9)
"""Adaptive parallel encoding (arXiv 2502.05431), with the temperature and scale that its authors' code has by default.

Places are the paper's: documents share those behind the prefix, and the question follows the longest. What differs: a lone
document behind its prefix is read plainly, as it is exact; text between documents is computed in its place in the prompt;
and sliding windows count tokens of the prompt, not these places.

Their experiments have others too, (0.9, 1) for one. Measured on SmolLM2-135M, four documents of 200 tokens, KL to a full
prefill over answers: 0.16 with (0.9, 0.9), 0.12 with (0.9, 1), 0.40 with (0.8, 0.8), and 0.15 with (1, 1).
"""


@dataclass(frozen=True)
class Policy:
    """``about`` is one line for lists.

    ``asks`` is whether a question must be known. ``share`` is that of the tokens that are recomputed whatever is asked for.
    ``drift`` is whether what changes in recomputed tokens is passed on to the others (``blend.drift``).
    ``parallel`` is how documents that stand side by side, not one behind the other, are read.
    """

    score: Callable[[Known], Tensor]
    about: str
    asks: bool = False
    share: float | None = None
    drift: bool = False
    parallel: Parallel | None = None


def nothing(known: Known) -> Tensor:
    return torch.zeros(len(known.candidates))


def even(known: Known) -> Tensor:
    """Evenly spaced over all candidates, the first of them included."""
    places = known.candidates.nonzero()[:, 0]
    chosen = torch.linspace(0, max(0, len(places) - 1), known.budget).round().long()
    return torch.zeros(len(known.candidates)).index_fill(0, places[chosen], 1.0)


def legolink(known: Known) -> Tensor:
    """The first tokens of each segment, as many of each (EPIC, arXiv 2410.15332)."""
    scores = torch.zeros(len(known.candidates))
    for segment in known.layout.segments:
        own = slice(segment.start, segment.stop)
        scores[own] = 1 / torch.arange(1, 1 + segment.stop - segment.start)
    return scores


def cacheblend(known: Known) -> Tensor:
    """How far values at the second layer are from what the model computes there (CacheBlend, arXiv 2405.16444)."""
    return _gradual(known, (1.0,))


def cacheblend_keys(known: Known) -> Tensor:
    """The same by keys, as LMCache has it."""
    return _gradual(known, (1.0,), keys=True)


def cacheblend_gradual(known: Known) -> Tensor:
    """CacheBlend's gradual filtering: each further layer compares what the one before it left, and leaves fewer.

    The paper gives no numbers: here three layers leave twice, one and a half times, and once what is asked for.
    """
    return _gradual(known, (2.0, 1.5, 1.0))


def _gradual(known: Known, shares: Sequence[float], *, keys: bool = False) -> Tensor:
    """Differences at one layer after the other from ``CHECKED`` on, each leaving its share of the budget.

    What a layer leaves out scores less than what it does not. Tokens without a cache are computed with the others, since
    what stands behind them reads them.
    """
    fresh = ~known.layout.cached
    left = known.candidates.clone()
    scores = torch.zeros(len(left))
    last = len(known.cache.layers) - 1
    for layer, share in enumerate(shares, CHECKED):
        tokens = (left | fresh).nonzero()[:, 0]
        found = known.refreshed(min(layer, last), tokens)[0 if keys else 1]
        own = torch.zeros(len(left)).index_copy(0, tokens, found) * left
        scores = torch.where(left, layer + own / own.max().clamp(min=1e-30), scores)
        if layer >= last:
            break
        # What is not left must not be kept, not even where nothing differs.
        own[~left] = -torch.inf
        kept = own.topk(min(int(left.sum()), round(share * known.budget))).indices
        left = torch.zeros_like(left).index_fill(0, kept, True)
    return scores


def prophet(known: Known) -> Tensor:
    """What the question's tokens look at over the cached keys (ProphetKV, arXiv 2602.02579)."""
    return known.attention.mean((0, 1))


def drift(known: Known) -> Tensor:
    """What the question looks at, times how much that depends on what stands before it where it was measured ahead.

    Where no question is known, what was found ahead to be needed, or else the first tokens of each segment.
    """
    if not known.questions:
        need = known.scored(NEED)
        return legolink(known) if need is None else need
    attention, spread = known.attention.mean(1), known.scored(SPREAD)
    return attention.mean(0) if spread is None else (attention * spread).mean(0)


POLICIES: Mapping[str, Policy] = {
    "none": Policy(nothing, "nothing is recomputed", share=0.0),
    "all": Policy(nothing, "everything is recomputed: a full prefill", share=1.0),
    "even": Policy(even, "evenly spaced tokens"),
    "legolink": Policy(legolink, "the first tokens of each segment"),
    "cacheblend": Policy(cacheblend, "tokens whose values at the second layer differ most"),
    "cacheblend-keys": Policy(cacheblend_keys, "tokens whose keys there differ most, as LMCache has it"),
    "cacheblend-gradual": Policy(
        cacheblend_gradual, "tokens whose values differ most at that layer and the two behind it"
    ),
    "prophet": Policy(prophet, "tokens that the question looks at", asks=True),
    "ape": Policy(
        nothing,
        "documents side by side, nothing is recomputed, attention to them is adapted",
        share=0.0,
        parallel=APE,
    ),
    "drift": Policy(
        drift,
        "tokens that the question looks at; in caches made for blending, what changes is passed on to the others",
        drift=True,
    ),
}


def policy_of(name: str) -> Policy:
    """Raises ``UsageError``, with near names, for one that is not known."""
    if name in POLICIES:
        return POLICIES[name]
    near = difflib.get_close_matches(name, POLICIES, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(POLICIES)}"
    raise UsageError(f"policy {name!r}", hint)
