"""A request → its plan: the prompt's tokens, and where the cache of the first of them comes from.

Nothing is loaded or computed yet: ``cache_manager`` opens the plan's sources, ``generation`` generates its answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtool.artifact.load import refuse_mismatch
from kvtool.artifact.read import Artifact
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Cached, Layout, lay_out
from kvtool.blending.record import log_outdated
from kvtool.errors import ArtifactError, MismatchError, StoreError
from kvtool.model.chat_template import SEPARATOR, Prefix, prints_time
from kvtool.model.model import Model
from kvtool.server.http.errors import ApiError
from kvtool.server.runtime.cache_manager import CacheManager
from kvtool.server.runtime.cache_sources import Blended, CacheSource, Prefilled, Stored, Uncached
from kvtool.server.runtime.load_policy import LoadPolicy
from kvtool.server.runtime.request import Prompt, Request, refuse_unknown_tokens
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import RAW
from kvtool.store.prefix_index import Match

_log = logging.getLogger(__name__)

MIN_CACHED_TOKENS = 64
"""Tokens of a prompt that must be cached for the cache to be loaded. Fewer are prefilled as soon as they are loaded."""


@dataclass(frozen=True)
class RequestPlan:
    """The tokens of a request, and the sources of its cache.

    ``token_ids`` are the whole prompt, ``document_tokens`` of them those of the documents that the request names, and
    ``max_tokens`` each answer's length at most. ``sources`` are in the order of preference: the next one is for the case that
    one is broken. Each says how many tokens it has, and how many bytes of memory the request takes beside it. ``match`` is
    what of the store the prompt begins with, used or not.
    """

    token_ids: Sequence[int]
    sources: tuple[CacheSource, ...]
    max_tokens: int
    document_tokens: int = 0
    match: Match | None = None


def prefix_before(
    documents: Sequence[Cached], prompt: Prompt, model: Model, store: Store
) -> tuple[Prefix, bool]:
    """The prefix of ``prompt`` over ``documents``, and whether any of these was prefilled under another one."""
    names = {store[document.name].prefix["digest"]: document.name for document in documents}
    prefixes = [prompt.prefix(model, store.prefix(name, model)) for name in names.values()]
    if len({prefix.digest for prefix in prefixes}) > 1 and not prompt.has_system:
        message = "they were prefilled under different system prompts; send a system message, or name others"
        raise ApiError(400, f"documents: {message}", param="documents")
    return prefixes[0], names.keys() != {prefixes[0].digest}


def lay_out_documents(
    store: Store,
    documents: Sequence[Cached],
    model: Model,
    *,
    variant: str = RAW,
    prefix: Prefix | None = None,
    refuse: Callable[[Artifact, Model], None] = refuse_mismatch,
) -> Layout:
    """The places of ``documents`` in a prompt, after their own prefix or ``prefix``. ``refuse`` is as of ``lay_out``.

    Blends among them that are out of date are named in the log: their text may be an old one.
    """
    token_ids = None if prefix is None else prefix.token_ids
    try:
        layout = lay_out(
            store,
            documents,
            model,
            variant=variant,
            separator=SEPARATOR,
            prefix=token_ids,
            refuse=refuse,
        )
    except MismatchError as error:
        message = "documents: they were prefilled by another model, or places of their tokens are not known; name others"
        raise ApiError(400, message, param="documents") from error
    log_outdated(store, layout.documents)
    return layout


class Planner:
    """Makes plans. ``answer_tokens`` is the length of answers to requests that do not say it."""

    def __init__(self, model: Model, caches: CacheManager, policy: LoadPolicy, answer_tokens: int) -> None:
        self.model, self.caches, self.policy, self.answer_tokens = model, caches, policy, answer_tokens

    def plan(self, request: Request, documents: Sequence[Cached] | None, tenant: Tenant) -> RequestPlan:
        """Plans ``request`` after ``documents``, or what it begins with of the tenant's store where they are None.

        Raises ``ApiError`` for what the model cannot take, and what ``kvtool.blend`` raises.
        """
        sampling = request.samplings[0]
        refuse_unknown_tokens(self.model, sampling.logit_bias, "logit_bias")
        refuse_unknown_tokens(self.model, sampling.stop_token_ids, "stop_token_ids")
        if documents is not None:
            return self._plan_after(documents, request, tenant)
        token_ids, match = self._match(request, tenant)
        size = self._size(token_ids, request, len(token_ids))
        sources = self._by_prefix(token_ids, match, size, tenant)
        return RequestPlan(token_ids, sources, size.max_tokens, match=match)

    def _plan_after(self, documents: Sequence[Cached], request: Request, tenant: Tenant) -> RequestPlan:
        blending = BlendOptions(request.recompute, request.policy)
        prefix, is_moved = prefix_before(documents, request.prompt, self.model, headers_of(tenant.store))
        choice = self.policy.choose(documents, blending, tenant, is_moved=is_moved)
        is_loaded = self._uses_caches(request) and not choice.is_prefilled
        store = tenant.store if is_loaded else headers_of(tenant.store)
        before = prefix if is_moved else None
        layout = lay_out_documents(store, documents, self.model, variant=choice.variant, prefix=before)
        if is_loaded:
            blending.refuse_pruned(layout)
        question = request.prompt.tokens_after(self.model, prefix)
        token_ids = [*layout.token_ids.tolist(), *question]
        size = self._size(token_ids, request, len(question))
        if not self._uses_caches(request):
            source: CacheSource = size.uncached()
        elif not choice.is_prefilled:
            source = _loaded(layout, blending, question, size)
        elif layout.is_alone:
            (segment,) = store[layout.documents[0]].segments
            source = _prefilled(layout, segment.identity, size)
        else:
            source = size.uncached(layout.documents)
        return RequestPlan(token_ids, (source,), size.max_tokens, len(layout.token_ids))

    def _match(self, request: Request, tenant: Tenant) -> tuple[Sequence[int], Match | None]:
        """The prompt's tokens, and what of the tenant's store they begin with.

        A chat template that prints the time prints the present, or the time of a cached document that the prompt then
        begins with.
        """
        token_ids = request.prompt.tokens(self.model)
        # A cache has no logits, so that it cannot tell how likely its own tokens are.
        if not self._uses_caches(request) or request.is_scored:
            return token_ids, None
        match = tenant.prefixes.longest(token_ids)
        for now in tenant.prefixes.times() if prints_time(self.model) else ():
            earlier_ids = request.prompt.tokens(self.model, now)
            earlier = tenant.prefixes.longest(earlier_ids)
            if earlier and earlier.document_tokens > max(
                match.document_tokens if match else 0, MIN_CACHED_TOKENS
            ):
                token_ids, match = earlier_ids, earlier
        return token_ids, match

    def _by_prefix(
        self, token_ids: Sequence[int], match: Match | None, size: _Size, tenant: Tenant
    ) -> tuple[CacheSource, ...]:
        uncached = size.uncached()
        # One token must be left, whose logits say what follows.
        tokens = min(match.tokens, len(token_ids) - 1) if match else 0
        if match is None or (tokens < MIN_CACHED_TOKENS and not match.is_whole):
            return (uncached,)
        try:
            if self.policy.prefers_prefill(match, tokens, tenant):
                return (uncached,)
            artifacts = tenant.store.parts(match.document, RAW, match.segment)
        except (StoreError, ArtifactError, MismatchError) as error:
            # Removed since, or broken: the request did not name it, so it is a miss.
            _log.warning("a cached beginning was not used: %s", error)
            return (uncached,)
        nbytes, documents = size.nbytes(tokens), (match.document,)
        stored = Stored(tokens=tokens, nbytes=nbytes, documents=documents, variant=RAW, artifacts=artifacts)
        return (stored, uncached)

    def _uses_caches(self, request: Request) -> bool:
        return self.policy.options.use_caches and request.use_cache

    def _size(self, token_ids: Sequence[int], request: Request, n_own: int) -> _Size:
        """Raises ``ApiError`` for a prompt that leaves no room for its answer, or has no tokens of its ``own``."""
        field, n_tokens, context = request.prompt.field, len(token_ids), self.model.context
        if not n_own:
            raise ApiError(400, f"{field}: expected at least one token", param=field)
        wanted = 1 if request.max_tokens is None else request.max_tokens
        if n_tokens + wanted > context:
            size = f"the prompt has {n_tokens}, and {wanted} were asked for"
            message = f"This model's maximum context length is {context} tokens; {size}"
            raise ApiError(400, message, param=field, code="context_length_exceeded")
        longest = min(self.answer_tokens, context - n_tokens)
        max_tokens = longest if request.max_tokens is None else request.max_tokens
        if request.samplings[0].min_tokens > max_tokens:
            message = f"min_tokens: an answer to this request has at most {max_tokens} tokens"
            raise ApiError(400, message, param="min_tokens")
        return _Size(n_tokens, max_tokens, len(request.samplings), self.caches.token_bytes)


@dataclass(frozen=True)
class _Size:
    """The tokens of a prompt and of each of its ``n_answers``."""

    prompt_tokens: int
    max_tokens: int
    n_answers: int
    token_bytes: int

    def nbytes(self, cached_tokens: int) -> int:
        """Memory of what is not cached of the prompt, and of the answers, each up to its longest."""
        rows = self.prompt_tokens - cached_tokens + self.max_tokens
        return self.token_bytes * rows * self.n_answers

    def uncached(self, documents: tuple[str, ...] = ()) -> Uncached:
        nbytes = self.nbytes(0)
        return Uncached(tokens=0, nbytes=nbytes, documents=documents, prompt_tokens=self.prompt_tokens)


def _loaded(layout: Layout, blending: BlendOptions, question: Sequence[int], size: _Size) -> Stored | Blended:
    tokens = len(layout.token_ids)
    nbytes, documents = size.nbytes(tokens), layout.documents
    if layout.is_alone:
        artifacts = [segment.artifact for segment in layout.segments]
        return Stored(
            tokens=tokens, nbytes=nbytes, documents=documents, variant=layout.variants[0], artifacts=artifacts
        )
    return Blended(
        tokens=tokens, nbytes=nbytes, documents=documents, layout=layout, blending=blending, question=question
    )


def _prefilled(layout: Layout, identity: str, size: _Size) -> Prefilled:
    token_ids, documents = layout.token_ids.tolist(), layout.documents
    tokens = len(token_ids)
    nbytes = size.nbytes(tokens)
    return Prefilled(
        tokens=tokens, nbytes=nbytes, documents=documents, identity=identity, token_ids=token_ids
    )
