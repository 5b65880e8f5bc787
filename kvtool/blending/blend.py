"""Several cached segments in one prompt, some of their tokens recomputed at their new place."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvtool.artifact.load import load_cache
from kvtool.blending.cache import BlendedCache
from kvtool.blending.drift import Drift
from kvtool.blending.layer_loader import LayerLoader, Upload, empty_cache
from kvtool.blending.layout import Layout, Part, lay_out, listed
from kvtool.blending.policies import DEFAULT, Policy, policy_of
from kvtool.blending.policy_inputs import USUAL_QUESTION, PolicyInputs
from kvtool.blending.pruned import join
from kvtool.blending.record import new_record
from kvtool.counts import counted
from kvtool.digest import digest_token_ids
from kvtool.engines.attention.parallel_encoding import parallel_error
from kvtool.engines.cache import ROOM, DocumentCache
from kvtool.engines.capabilities import has_softmax_attention, key_rotations
from kvtool.engines.recompute import recompute_tokens
from kvtool.engines.rope import Rotations
from kvtool.engines.transformers import feed, windows
from kvtool.errors import ModelError, UsageError
from kvtool.model.chat_template import Prefix, question_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW
from kvtool.system.trace import Trace

RECOMPUTE = 0.15
"""The share of tokens that is recomputed by default, as in the CacheBlend paper."""

STEP_TOKENS = 128
"""The least number of recomputed tokens in a pass: for fewer, reading the model's weights costs more than computing."""


def blend(
    store: Store,
    names: str | Part | Iterable[Part],
    model: Model,
    *,
    recompute: float = RECOMPUTE,
    policy: str = DEFAULT,
    question: str | Sequence[str] | None = None,
    variant: str = RAW,
    separator: str = "",
    trace: Trace | None = None,
) -> BlendedCache:
    """A transformers cache of documents one after the other, ready for ``model``; ``token_ids`` are its tokens.

    ``names`` are documents of ``store``, in any order and as often as wanted: names, or ``Cached`` for one of a
    document's segments or variants, or ``Text`` for text between documents. ``variant`` is that of documents that name
    none, and ``separator`` a text between any two parts. The first of several documents has nothing but its prefix before
    it: its own cache is used, even where the variant made for blending is named.

    ``recompute`` is the share of the documents' tokens that the model runs again after the text that now stands before
    them: those that ``policy`` gives the highest scores. Tokens whose cache is right for their place are not recomputed,
    and text without a cache always is. With 1, everything is recomputed: the result is that of a full prefill, to the bit.
    A document alone is its own cache. One that was pruned is taken among others only with 0: the tokens that it keeps are
    moved as they are. ``question`` is the question that follows, or several of them. Some policies need
    it; the default one is better with it. Where ``parallel`` of the cache is set, as by the policy ``ape``, call
    ``generate`` under ``engines.attention.cache_attention.cache_attention(model, cache)``.

    Raises ``UsageError`` for a value that makes no sense or for more tokens than the model's context, ``StoreError`` for
    what the store does not have, ``MismatchError`` for segments of another model or of different prefixes, and
    ``ModelError`` for a model whose keys cannot be moved or, where the policy adapts attention, whose attention is not
    softmax attention; all before the model runs over a document. Raises ``ArtifactError`` for a broken file.
    """
    options = BlendOptions(recompute, policy)
    parts = listed(names)
    layout = lay_out(store, parts, model, variant=variant, separator=separator)
    record = new_record(parts, layout, variant=variant, separator=separator, **asdict(options))
    prefix = shared_prefix(layout, store, model)
    questions = [question] if isinstance(question, str) else question or []
    question_ids = [question_tokens(model, prefix, each) for each in questions]
    usual = () if questions else question_tokens(model, prefix, USUAL_QUESTION)
    with store.using(*layout.documents):
        cache = assemble(layout, model, options, question_ids, trace, usual_question=usual)
    cache.record = record
    return cache


@dataclass(frozen=True)
class BlendOptions:
    """The share of tokens that are recomputed, and the policy that chooses them; ``blend`` says more.

    Raises ``UsageError`` for a share outside of [0, 1] and for an unknown policy.
    """

    recompute: float = RECOMPUTE
    policy: str = DEFAULT

    def __post_init__(self) -> None:
        policy = policy_of(self.policy)
        if not (isinstance(self.recompute, (int, float)) and 0 <= self.recompute <= 1):
            reason = "expected a share of the documents' tokens, from 0 to 1"
            raise UsageError(f"recompute {self.recompute!r}", reason)
        if policy.share is not None:
            object.__setattr__(self, "recompute", policy.share)

    @property
    def takes_pruned(self) -> bool:
        """Whether documents may be pruned: none of their tokens is recomputed, and attention is the model's."""
        return not self.recompute and not policy_of(self.policy).parallel

    def made(self, layout: Layout, questions: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """What says, as JSON, how the cache of ``layout`` comes about; empty where a prefill of its tokens gives the same."""
        if layout.is_alone:
            is_exact = all(one.artifact.is_raw and one.artifact.is_exact for one in layout.segments)
            return {} if is_exact else {"policy": "none"}
        if self.recompute == 1:
            return {}
        if layout.pruned:
            return {"policy": "none"}
        return {**asdict(self), "asked": [digest_token_ids(ids) for ids in questions]}

    def refuse_pruned(self, layout: Layout) -> None:
        """Raises ``UsageError`` for documents of ``layout`` that were pruned, where these options cannot take them."""
        if layout.pruned and not layout.is_alone and self.recompute != 1 and not self.takes_pruned:
            is_parallel = policy_of(self.policy).parallel is not None
            setting = f"policy {self.policy!r}" if is_parallel else f"recompute {self.recompute}"
            raise UsageError(
                ", ".join(layout.pruned),
                "was pruned: among other texts, the tokens that it keeps can only be moved as they are, which is not "
                f"what {setting} does",
                f"take recompute 0{' and another policy' if is_parallel else ''}, or a variant that keeps every token",
            )


def assemble(
    layout: Layout,
    model: Model,
    options: BlendOptions,
    questions: Sequence[Sequence[int]] = (),
    trace: Trace | None = None,
    *,
    usual_question: Sequence[int] = (),
) -> BlendedCache:
    """The cache that ``layout`` describes. ``blend`` says more.

    ``questions`` are each question's token ids. ``usual_question`` is looked at where there are none.
    """
    cache = _assembled(layout, model, options, questions, trace or Trace(), usual_question)
    cache.made = options.made(layout, questions)
    return cache


def _assembled(
    layout: Layout,
    model: Model,
    options: BlendOptions,
    questions: Sequence[Sequence[int]],
    trace: Trace,
    usual_question: Sequence[int],
) -> BlendedCache:
    if layout.is_alone:
        return _load(model, layout, trace)
    if options.recompute == 1:
        return _prefill(model, layout, trace)
    options.refuse_pruned(layout)
    if layout.pruned:
        return join(layout, model, _rotations(model, layout), trace)
    policy = policy_of(options.policy)
    if policy.needs_question and options.recompute and not questions:
        reason = "needs the question that is going to be asked"
        raise UsageError(f"policy {options.policy!r}", reason, "give question=, or another policy")
    rotations = _rotations(model, layout)
    if policy.parallel:
        if not has_softmax_attention(model):
            raise parallel_error(model)
        layout = layout.in_parallel()
    inexact = int((layout.cached & ~layout.exact).sum())
    budget = min(math.ceil(options.recompute * layout.n_document_tokens), inexact)
    upload = Upload.for_model(model)
    room = max(map(len, [*questions, usual_question]))
    cache = empty_cache(layout, room=room, pinned=upload is not None)
    cache.parallel = policy.parallel and replace(policy.parallel, prefix_tokens=layout.prefix_tokens)
    with LayerLoader(layout, rotations, cache, trace, upload) as loader:
        question_ids, usual = [torch.tensor(ids) for ids in questions], torch.tensor(usual_question)
        inputs = PolicyInputs(model, layout, cache, loader, budget, question_ids, usual, trace)
        tokens = _choose(inputs, policy)
        for step in _steps(layout, tokens):
            drift = Drift(layout, rotations, cache, step) if policy.drift else None
            _recompute(model, cache, step, loader, trace, drift)
        cache.recomputed = len(tokens)
        loader.wait_for_all()
    return cache


def shared_prefix(layout: Layout, store: Store, model: Model) -> Prefix:
    """The prefix of ``layout``, which says how a question's prompt ends."""
    return store.prefix(layout.segments[-1].document, model)


def _rotations(model: Model, layout: Layout) -> Rotations:
    rotations = key_rotations(model)
    if rotations is None:
        raise ModelError(
            model.name,
            f"how {model.config.model_type} rotates its keys is not known, so that they cannot be moved to "
            "another place",
            "blend with recompute 1, which computes everything",
        )
    length, limit = len(layout.token_ids), rotations.up_to
    if limit is not None and length > limit:
        raise UsageError(
            "the documents together",
            f"are {length:,} tokens long, and from {limit:,} on {model.name} rotates its keys otherwise",
            "blend fewer, or with recompute 1",
        )
    return rotations


def _choose(inputs: PolicyInputs, policy: Policy) -> Tensor:
    """Indices [S] of the tokens to recompute, ascending: those without a cache, and those that score highest."""
    tokens = (~inputs.layout.cached).nonzero()[:, 0]
    if not inputs.budget:
        return tokens
    scores = torch.where(inputs.candidates, policy.score(inputs), -torch.inf)
    return torch.cat([tokens, scores.topk(inputs.budget).indices]).sort().values


def _steps(layout: Layout, tokens: Tensor) -> Iterator[Tensor]:
    """``tokens`` in steps that are computed one after the other, each of whole segments.

    In one pass, all of them would pay for the keys that only the last see.
    """
    ends = torch.tensor([segment.stop for segment in layout.segments])
    start = 0
    for cut in torch.searchsorted(tokens, ends).tolist():
        if cut - start >= STEP_TOKENS and len(tokens) - cut >= STEP_TOKENS:
            yield tokens[start:cut]
            start = cut
    if start < len(tokens):
        yield tokens[start:]


def _recompute(
    model: Model, cache: DocumentCache, tokens: Tensor, loader: LayerLoader, trace: Trace, drift: Drift | None
) -> None:
    started = time.perf_counter()

    def before_layer(layer: int) -> None:
        nonlocal started
        if layer:
            trace.add("recompute", f"{counted(len(tokens), 'token')} in layer {layer - 1}", started)
        loader.wait(layer)
        started = time.perf_counter()

    ids, n_keys = cache.token_ids, int(tokens[-1]) + 1
    recompute_tokens(model, cache, ids, tokens, n_keys=n_keys, before_layer=before_layer, on_change=drift)
    trace.add("recompute", f"{counted(len(tokens), 'token')} in layer {len(cache.layers) - 1}", started)


def _load(model: Model, layout: Layout, trace: Trace) -> BlendedCache:
    """A document alone is its own cache, compressed or not."""
    parts = [segment.artifact for segment in layout.segments]
    with trace.span("read", ", ".join(layout.documents)):
        loaded = load_cache(parts, model)
    cache = BlendedCache(layout, len(loaded.layers))
    cache.layers = loaded.layers
    return cache


def _prefill(model: Model, layout: Layout, trace: Trace) -> BlendedCache:
    """The documents as one prompt, prefilled in one pass: equal to the bit to any other full prefill."""
    cache = BlendedCache(layout, len(windows(model)), capacity=len(layout.token_ids) + ROOM)
    with trace.span("recompute", f"all {len(layout.token_ids)} tokens"):
        feed(model, layout.token_ids.tolist(), cache, step=len(layout.token_ids))
    cache.recomputed = len(layout.token_ids)
    return cache
