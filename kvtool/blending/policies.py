"""Policies of recomputing: each gives every token a score, and those that score highest are recomputed.

A policy is a function from ``PolicyInputs`` to scores [N] float32. Only the order of the scores matters, and only among
``inputs.candidates``. Adding one is adding a function and a line to ``POLICIES``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.artifact.scores import SPREAD
from kvtool.blending.layout import Layout
from kvtool.blending.policy_inputs import PolicyInputs
from kvtool.engines.cache import ParallelEncoding
from kvtool.errors import UsageError

DEFAULT = "drift"

CHECKED = 1
"""The layer at which CacheBlend compares: the first one whose values depend on the tokens before."""

INFOFLOW_LAYERS = slice(22, 26)
"""Layers of InfoFlow's score, which the paper takes for all its models; of a smaller model the last four."""

APE = ParallelEncoding(temperature=0.9, scale=1.0)
"""Adaptive parallel encoding (arXiv 2502.05431), with a temperature and scale of the authors' experiments.

Their code has (0.9, 0.9) by default, and other numbers elsewhere. Measured on SmolLM2-135M, four documents of 200 tokens, KL
to a full prefill over answers: 0.16 with (0.9, 0.9), 0.12 with (0.9, 1), 0.40 with (0.8, 0.8), and 0.15 with (1, 1). On two
other sets, 0.20 with (0.9, 0.9) and 0.17 with (0.9, 1).

Positions are the paper's: documents share those after the prefix, and the question follows the longest. Three things
differ. A lone document after its prefix is attended to as usual, as it is exact. Text between documents is computed at its
place in the prompt. Sliding windows count tokens of the prompt, not these positions.
"""


@dataclass(frozen=True)
class Policy:
    """A way to choose tokens; ``about`` describes it in one line.

    ``needs_question`` is whether the question must be known. ``share`` is a share of recomputed tokens that the options
    cannot change. ``drift`` is whether changes of recomputed tokens are passed on to the others (``blending.drift``).
    ``parallel`` is how documents are attended to that stand in parallel, not one after the other.
    """

    score: Callable[[PolicyInputs], Tensor]
    about: str
    needs_question: bool = False
    share: float | None = None
    drift: bool = False
    parallel: ParallelEncoding | None = None


def nothing(inputs: PolicyInputs) -> Tensor:
    return torch.zeros(len(inputs.candidates))


def even(inputs: PolicyInputs) -> Tensor:
    """Evenly spaced over all candidates, the first of them included."""
    places = inputs.candidates.nonzero()[:, 0]
    chosen = torch.linspace(0, max(0, len(places) - 1), inputs.budget).round().long()
    return torch.zeros(len(inputs.candidates)).index_fill(0, places[chosen], 1.0)


def legolink(inputs: PolicyInputs) -> Tensor:
    """The first tokens of each segment, as many of each: LegoLink of EPIC (arXiv 2410.15332), for which up to 32 are enough."""
    scores = torch.zeros(len(inputs.candidates))
    for segment in inputs.layout.segments:
        tokens = slice(segment.start, segment.stop)
        scores[tokens] = 1 / torch.arange(1, 1 + segment.stop - segment.start)
    return scores


def cacheblend(inputs: PolicyInputs) -> Tensor:
    """How far values at the second layer are from the recomputed ones (CacheBlend, arXiv 2405.16444)."""
    return _gradual(inputs, (1.0,))


def cacheblend_keys(inputs: PolicyInputs) -> Tensor:
    """The same by keys, as LMCache has it."""
    return _gradual(inputs, (1.0,), keys=True)


def cacheblend_gradual(inputs: PolicyInputs) -> Tensor:
    """CacheBlend's gradual filtering: each further layer compares the tokens that the one before it kept, and keeps fewer.

    The paper gives no numbers: here three layers keep twice, one and a half times, and once the budget.
    """
    return _gradual(inputs, (2.0, 1.5, 1.0))


def _gradual(inputs: PolicyInputs, shares: Sequence[float], *, keys: bool = False) -> Tensor:
    """Differences at one layer after the other from ``CHECKED`` on, each keeping its share of the budget.

    A token that a layer drops scores less than one that it keeps. Tokens without a cache are computed with the others,
    since the tokens after them attend to them.
    """
    uncached = ~inputs.layout.cached
    kept = inputs.candidates.clone()
    scores = torch.zeros(len(kept))
    last = len(inputs.cache.layers) - 1
    for layer, share in enumerate(shares, CHECKED):
        tokens = (kept | uncached).nonzero()[:, 0]
        changes = inputs.refreshed(min(layer, last), tokens)[0 if keys else 1]
        difference = torch.zeros(len(kept)).index_copy(0, tokens, changes) * kept
        scores = torch.where(kept, layer + difference / difference.max().clamp(min=1e-30), scores)
        if layer >= last:
            break
        # Dropped tokens must stay dropped, even where nothing differs.
        difference[~kept] = -torch.inf
        highest = difference.topk(min(int(kept.sum()), round(share * inputs.budget))).indices
        kept = torch.zeros_like(kept).index_fill(0, highest, True)
    return scores


def prophet(inputs: PolicyInputs) -> Tensor:
    """The question's attention to the cached keys, averaged over layers and heads (ProphetKV, arXiv 2602.02579).

    Both of the paper's stages are built: the question's pass over all layers, whose attention is fused to one score for
    each token, and then recomputing. Here the weights are of one softmax over the whole prompt, the question's own tokens
    included; the paper's are over the documents alone. Its kernels and its schedule on a GPU are not built.
    """
    return inputs.attention.mean((0, 1))


def fusionrag(inputs: PolicyInputs) -> Tensor:
    """The question's attention at the last layer (FusionRAG, arXiv 2601.12904): its query-guided selection.

    Its caches are of documents prefilled after similar ones; here, those of ``prefill --neighbours``. The paper's weights are
    for each document apart; here they are of one softmax over the whole prompt, and the question stands after it.
    """
    return inputs.attention[-1].mean(0)


def infoflow(inputs: PolicyInputs) -> Tensor:
    """The norm over the question's tokens of their attention, at a band of layers (InfoFlow KV, arXiv 2603.05353).

    As in its authors' code: the mean over heads, then the norm, then the mean over layers; keys are at the positions of the
    prompt. Its order of documents, the most attended to last, is not built: here the caller decides it.
    """
    n_layers = len(inputs.attention_norm)
    band = INFOFLOW_LAYERS if n_layers >= INFOFLOW_LAYERS.stop else slice(-4, None)
    return inputs.attention_norm[band].mean(0)


def drift(inputs: PolicyInputs) -> Tensor:
    """Attention that a token gets, times how much its values are expected to change.

    The attention is the question's, or what can be guessed of it where no question is known. The change is that of a token
    at this place of a segment, and where it was measured ahead, what the token itself changes by.
    """
    attention = inputs.attention if inputs.questions else inputs.likely_attention
    usual, spread = usual_change(inputs.layout), inputs.score(SPREAD)
    return (attention.mean(1) * usual * (usual if spread is None else spread)).mean(0)


def usual_change(layout: Layout) -> Tensor:
    """How much other text before a segment changes a token, by its place in the segment alone; [N] float32, without a unit.

    Measured on SmolLM2-135M, the distance of values falls with the place to the power of 0.28, alike in all layers, in caches of
    documents alone and in those made for blending. A greater power chose better tokens.
    """
    change = torch.ones(len(layout.token_ids))
    for segment in layout.segments:
        places = torch.arange(1, 1 + segment.stop - segment.start)
        change[segment.start : segment.stop] = places.pow(-0.375)
    return change


POLICIES: Mapping[str, Policy] = {
    "none": Policy(nothing, "nothing is recomputed", share=0.0),
    "all": Policy(nothing, "everything is recomputed: a full prefill", share=1.0),
    "even": Policy(even, "evenly spaced tokens"),
    "legolink": Policy(legolink, "the first tokens of each segment, as EPIC has it"),
    "cacheblend": Policy(cacheblend, "tokens whose values at the second layer differ most"),
    "cacheblend-keys": Policy(cacheblend_keys, "tokens whose keys there differ most, as LMCache has it"),
    "cacheblend-gradual": Policy(
        cacheblend_gradual, "tokens whose values differ most at that layer and the two after it"
    ),
    "prophet": Policy(prophet, "tokens that the question attends to", needs_question=True),
    "fusionrag": Policy(
        fusionrag, "tokens that the question attends to at the last layer", needs_question=True
    ),
    "infoflow": Policy(
        infoflow, "tokens that single tokens of the question attend to much", needs_question=True
    ),
    "ape": Policy(
        nothing,
        "documents in parallel, nothing is recomputed, attention to them is adapted",
        share=0.0,
        parallel=APE,
    ),
    "drift": Policy(
        drift,
        "tokens that the question attends to and that change; their changes are passed on to the others",
        drift=True,
    ),
}


def policy_of(name: str) -> Policy:
    """The policy ``name``. Raises ``UsageError``, with near names, for one that is not known."""
    if name in POLICIES:
        return POLICIES[name]
    near = difflib.get_close_matches(name, POLICIES, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(POLICIES)}"
    raise UsageError(f"policy {name!r}", hint)
