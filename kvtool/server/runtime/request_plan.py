"""A request → its prompt's tokens, and the cache of what is cached of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kvtool.blending.blend import BlendOptions, shared_prefix
from kvtool.blending.layout import Cached, chosen_document, lay_out
from kvtool.engines.cache import DocumentCache
from kvtool.errors import ArtifactError, MismatchError, StoreError
from kvtool.model.chat_template import SEPARATOR, Prefix
from kvtool.model.conversation import Message, chat_tokens, text_tokens, tokens_after_documents
from kvtool.model.model import Model
from kvtool.server.cached_contents.store import KIND
from kvtool.server.http.errors import ApiError, document_missing
from kvtool.server.openai.schemas import Asked, ChatRequest
from kvtool.server.runtime.cache_manager import Caches
from kvtool.server.runtime.load_policy import Choosing
from kvtool.server.runtime.tenant import Tenant
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import RAW

_log = logging.getLogger(__name__)

LEAST = 64
"""Tokens of a prompt that must be cached for the cache to be loaded. Fewer are read as soon as they are loaded."""


@dataclass(frozen=True)
class Prompt:
    """``token_ids`` are all of it, of which the first ``seen`` are in ``cache``; ``computed`` of these for this request."""

    token_ids: Sequence[int]
    cache: DocumentCache
    seen: int
    computed: int = 0

    @property
    def cached_tokens(self) -> int:
        return self.seen - self.computed


class Prompting:
    """``answer_tokens`` are those of an answer to a request that does not say how many it wants."""

    def __init__(self, model: Model, caches: Caches, choosing: Choosing, answer_tokens: int) -> None:
        self.model, self.caches, self.choosing, self.answer_tokens = model, caches, choosing, answer_tokens

    @contextmanager
    def prompt(self, request: Asked, tenant: Tenant) -> Iterator[Prompt]:
        """What ``request`` asks of the model, with the cache of what is cached of it, which is held within the context.

        Raises ``ApiError`` for what the model cannot take, and what ``kvtool.blend`` raises.
        """
        with ExitStack() as stack:
            if request.documents is None and request.cached_content is None:
                yield self._plain(request, tenant, stack)
            else:
                yield self._over_documents(request, tenant, stack)

    def most(self, prompt_tokens: int, request: Asked) -> int:
        """Tokens of an answer, at most."""
        return request.most or min(self.answer_tokens, self.model.context - prompt_tokens)

    def _plain(self, request: Asked, tenant: Tenant, stack: ExitStack) -> Prompt:
        ids = self._tokens(request)
        self._refuse_too_long(ids, request)
        self.caches.metrics.queries.inc()
        match = tenant.prefixes.longest(ids) if self._uses_caches(request) else None
        # One token must be left, whose logits say what follows.
        seen = min(match.tokens, len(ids) - 1) if match else 0
        if match is None or (seen < LEAST and not match.is_whole):
            return self._uncached(ids, request, stack)
        try:
            if self.choosing.is_sooner_read(match, seen, tenant):
                return self._uncached(ids, request, stack)
            parts = tenant.store.parts(match.document, RAW, match.segment)
            own = self._own_bytes(len(ids) - seen, request)
            cache = stack.enter_context(self.caches.loaded(tenant.name, RAW, parts, own))
        except (StoreError, ArtifactError, MismatchError) as error:
            # Removed since, or broken: nobody asked for it by name, so it is a miss.
            _log.warning("a cached beginning was not used: %s", error)
            return self._uncached(ids, request, stack)
        tenant.hits.update([match.document])
        return Prompt(ids, cache, seen)

    def _over_documents(self, request: Asked, tenant: Tenant, stack: ExitStack) -> Prompt:
        chosen = self._chosen(request, tenant, stack)
        how = BlendOptions(float(request.recompute), request.policy)
        best = self.choosing.best(chosen, how, tenant)
        is_loaded = self._uses_caches(request) and not best.is_prefilled
        store = tenant.store if is_loaded else headers_of(tenant.store)
        try:
            layout = lay_out(store, chosen, self.model, variant=best.variant, separator=SEPARATOR)
        except MismatchError as error:
            message = "documents: they were prefilled by another model, or under different system prompts; name others"
            raise ApiError(400, message, param="documents") from error
        behind = self._behind(request, shared_prefix(layout, store, self.model))
        document_ids = layout.token_ids.tolist()
        ids, seen = [*document_ids, *behind], len(document_ids)
        self._refuse_too_long(ids, request)
        self.caches.metrics.queries.inc()
        if not self._uses_caches(request):
            return self._uncached(ids, request, stack)
        tenant.hits.update(layout.documents)
        own = self._own_bytes(len(behind), request)
        if best.is_prefilled and layout.is_alone:
            (segment,) = store[layout.documents[0]].segments
            prefilling = self.caches.prefilled(tenant.name, segment.identity, document_ids, own)
            cache, computed = stack.enter_context(prefilling)
            return Prompt(ids, cache, seen, seen if computed else 0)
        if best.is_prefilled:
            return self._uncached(ids, request, stack)
        if layout.is_alone:
            parts = [segment.artifact for segment in layout.segments]
            loading = self.caches.loaded(tenant.name, layout.variants[0], parts, own)
            return Prompt(ids, stack.enter_context(loading), seen)
        blended = stack.enter_context(self.caches.blended(layout, how, behind, own))
        return Prompt(ids, blended, seen, blended.recomputed)

    def _chosen(self, request: Asked, tenant: Tenant, stack: ExitStack) -> list[Cached]:
        if request.cached_content is None:
            names = request.documents or []
        elif request.documents is None:
            names = [KIND + request.cached_content.removeprefix(KIND)]
        else:
            message = "cached_content: cannot be given with documents; name it among these instead"
            raise ApiError(400, message, param="cached_content")
        # Whoever names cached contents as documents gets them under the same conditions.
        return [
            Cached(stack.enter_context(tenant.contents.using(name, self.model)), RAW)
            if name.startswith(KIND)
            else _document(tenant.store, name)
            for name in names
        ]

    def _uses_caches(self, request: Asked) -> bool:
        return self.choosing.loading.use_caches and request.use_cache

    def _uncached(self, ids: Sequence[int], request: Asked, stack: ExitStack) -> Prompt:
        empty = self.caches.empty(len(ids), self._own_bytes(len(ids), request))
        return Prompt(ids, stack.enter_context(empty), 0)

    def _own_bytes(self, behind: int, request: Asked) -> int:
        """What the answers' own rows take, up to their longest."""
        return self.caches.token_bytes * (behind + (request.most or self.answer_tokens)) * request.choices

    def _tokens(self, request: Asked) -> list[int]:
        if isinstance(request, ChatRequest):
            return chat_tokens(self.model, _messages(request))
        if isinstance(request.prompt, str):
            return text_tokens(self.model, request.prompt, is_first=True)
        size = self.model.text_config.vocab_size
        if not all(0 <= token < size for token in request.prompt):
            raise ApiError(400, f"prompt: expected token ids from 0 to {size - 1}", param="prompt")
        return request.prompt

    def _behind(self, request: Asked, prefix: Prefix) -> list[int]:
        if isinstance(request, ChatRequest):
            return tokens_after_documents(self.model, prefix, _messages(request))
        if isinstance(request.prompt, str):
            return text_tokens(self.model, request.prompt, is_first=False)
        return self._tokens(request)

    def _refuse_too_long(self, ids: Sequence[int], request: Asked) -> None:
        field = "messages" if isinstance(request, ChatRequest) else "prompt"
        if not ids:
            raise ApiError(400, f"{field}: expected at least one token", param=field)
        most = request.most or 1
        if len(ids) + most > self.model.context:
            raise ApiError(
                400,
                f"This model's maximum context length is {self.model.context} tokens; the prompt has {len(ids)}, and "
                f"{most} were asked for",
                param=field,
                code="context_length_exceeded",
            )


def _document(store: Store, name: str) -> Cached:
    try:
        store.check_name(name)
    except StoreError:
        raise document_missing(name) from None
    return chosen_document(store, name)


def _messages(request: ChatRequest) -> list[Message]:
    return [message.message for message in request.messages]
