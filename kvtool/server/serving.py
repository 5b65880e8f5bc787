"""What serves: a model, its scheduler, memory for caches, and each tenant's documents."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from anyio import CapacityLimiter

from .. import limits as bounds
from ..artifact import Artifact
from ..blend.blending import How, assemble, shared_prefix
from ..blend.layout import Cached, chosen_document, lay_out
from ..engines.cache import ROOM, DocumentCache
from ..engines.transformers import new_cache
from ..errors import ArtifactError, MismatchError, StoreError
from ..heap import Trimming
from ..load import load_cache
from ..manifest import RAW
from ..model import Model
from ..prompt import BETWEEN, Prefix
from ..store import Store
from .errors import ApiError, document_missing
from .filling import Filling
from .memory import Memory
from .metrics import Metrics
from .prefixes import Prefixes
from .prompts import Message, behind_documents, chat_tokens, text_tokens
from .records import KIND, Contents
from .requests import ChatRequest, CompletionRequest
from .scheduler import Scheduler

_log = logging.getLogger(__name__)

LEAST = 64
"""Tokens of a prompt that must be cached for the cache to be loaded. Fewer are read as soon as they are loaded."""

PREPARING = 8
"""Requests that are prepared at a time: tokenized, and their caches loaded."""


@dataclass(frozen=True)
class Limits:
    """``memory`` is in bytes; ``wait`` is how long a request waits for room there, in seconds.

    ``answer_tokens`` are those of an answer to a request that does not say how many it wants.
    """

    memory: int
    answer_tokens: int = 1024
    concurrency: int = 256
    wait: float = 60.0


@dataclass
class Tenant:
    """Who has a token, and the documents and cached contents that are theirs alone.

    ``hits`` are the times that each was answered from.
    """

    name: str
    store: Store
    prefixes: Prefixes
    contents: Contents
    hits: Counter[str] = field(default_factory=Counter)
    uploads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(bounds.UPLOADS))


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


@dataclass
class Serving:
    model: Model
    tenants: dict[str, Tenant]
    limits: Limits
    variant: str = RAW
    use_caches: bool = True
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.memory = Memory(self.limits.memory)
        self.heap = Trimming()
        self.scheduler = Scheduler(self.model)
        self.preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self.started = int(time.time())
        self.waiting = 0
        self.is_draining = False
        self._token_bytes = _bytes_of_a_token(self.model)
        self.filling = [
            Filling(tenant.contents, self.model, self.scheduler, self.memory, self._token_bytes)
            for tenant in self.tenants.values()
        ]

    def start(self) -> None:
        self.heap.start()
        self.scheduler.start()
        for filling in self.filling:
            filling.start()

    def stop(self) -> None:
        """Waits for the answers that are on their way."""
        for filling in self.filling:
            filling.stop()
        self.scheduler.stop()

    @classmethod
    def over(
        cls,
        root: Path,
        model: Model,
        limits: Limits,
        *,
        names: Collection[str] = (),
        variant: str = RAW,
        use_caches: bool = True,
    ) -> Serving:
        """The store at ``root`` for everyone, or for each of the tenants ``names`` one of their own below it."""
        roots = {name: root / "tenants" / name for name in names} or {"": root}
        stores = {name: Store(path) for name, path in roots.items()}
        tenants = {
            name: Tenant(name, store, Prefixes(store, model), Contents(store))
            for name, store in stores.items()
        }
        return cls(model, tenants, limits, variant, use_caches)

    @property
    def not_ready(self) -> str | None:
        """Why no request should be sent here, if none should."""
        if self.is_draining:
            return "stopping"
        if not self.scheduler.is_alive:
            return "the model is not running"
        if self.scheduler.round_seconds > bounds.STUCK_SECONDS:
            return "the model is stuck"
        return None

    @contextmanager
    def prompt(self, request: ChatRequest | CompletionRequest, tenant: Tenant) -> Iterator[Prompt]:
        """What ``request`` asks of the model, with the cache of what is cached of it, which is held within the context.

        Raises ``ApiError`` for what the model cannot take, and what ``kvtool.blend`` raises.
        """
        with ExitStack() as stack:
            stack.callback(self.heap.freed)
            if request.documents is None and request.cached_content is None:
                yield self._plain(request, tenant, stack)
            else:
                yield self._over_documents(request, tenant, stack)

    def _plain(self, request: ChatRequest | CompletionRequest, tenant: Tenant, stack: ExitStack) -> Prompt:
        ids = self._tokens(request)
        self._refuse_too_long(ids, request)
        self.metrics.queries.inc()
        match = tenant.prefixes.longest(ids) if self._uses_caches(request) else None
        # One token must be left, whose logits say what follows.
        seen = min(match.tokens, len(ids) - 1) if match else 0
        if match is None or (seen < LEAST and not match.is_whole):
            return self._uncached(ids, request, stack)
        try:
            parts = tenant.store.parts(match.document, RAW, match.segment)
            cache = self._held(parts, len(ids) - seen, request, tenant, stack)
        except (StoreError, ArtifactError, MismatchError) as error:
            # Removed since, or broken: nobody asked for it by name, so it is a miss.
            _log.warning("a cached beginning was not used: %s", error)
            return self._uncached(ids, request, stack)
        tenant.hits.update([match.document])
        return Prompt(ids, cache, seen)

    def _over_documents(
        self, request: ChatRequest | CompletionRequest, tenant: Tenant, stack: ExitStack
    ) -> Prompt:
        chosen = self._chosen(request, tenant, stack)
        how = How(float(request.recompute), request.policy)
        try:
            layout = lay_out(tenant.store, chosen, self.model, variant=self.variant, between=BETWEEN)
        except MismatchError as error:
            message = "documents: they were prefilled by another model, or under different system prompts; name others"
            raise ApiError(400, message, param="documents") from error
        behind = self._behind(request, shared_prefix(layout, tenant.store, self.model))
        ids = [*layout.token_ids.tolist(), *behind]
        self._refuse_too_long(ids, request)
        self.metrics.queries.inc()
        if not self._uses_caches(request):
            return self._uncached(ids, request, stack)
        tenant.hits.update(layout.documents)
        seen = len(layout.token_ids)
        parts = [segment.artifact for segment in layout.segments]
        if layout.is_alone:
            return Prompt(ids, self._held(parts, len(behind), request, tenant, stack), seen)
        # What is recomputed depends on the question, so that nobody else could use it.
        own = self._bytes_of(len(behind), request) + self._token_bytes * (seen + ROOM)
        stack.enter_context(self.memory.reserved(own, timeout=self.limits.wait))
        with self.metrics.blends.time():
            blended = self.scheduler.call(lambda: assemble(layout, self.model, how, [behind])).result()
        self.metrics.bytes_read.inc(sum(part.nbytes for part in parts))
        self.metrics.hits.inc()
        return Prompt(ids, blended, seen, blended.recomputed)

    def _chosen(
        self, request: ChatRequest | CompletionRequest, tenant: Tenant, stack: ExitStack
    ) -> list[Cached]:
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

    def _uses_caches(self, request: ChatRequest | CompletionRequest) -> bool:
        return self.use_caches and request.use_cache

    def _uncached(
        self, ids: Sequence[int], request: ChatRequest | CompletionRequest, stack: ExitStack
    ) -> Prompt:
        stack.enter_context(self.memory.reserved(self._bytes_of(len(ids), request), timeout=self.limits.wait))
        return Prompt(ids, new_cache(self.model, len(ids) + ROOM), 0)

    def _held(
        self,
        parts: Sequence[Artifact],
        behind: int,
        request: ChatRequest | CompletionRequest,
        tenant: Tenant,
        stack: ExitStack,
    ) -> DocumentCache:
        """The cache of ``parts``, which all requests of the tenant share."""
        holding = self.memory.holding(
            (tenant.name, *(part.digest for part in parts)),
            self._token_bytes * (sum(len(part.token_ids) for part in parts) + ROOM),
            lambda: self._load(parts),
            own=self._bytes_of(behind, request),
            timeout=self.limits.wait,
        )
        cache = stack.enter_context(holding)
        self.metrics.hits.inc()
        return cache

    def _load(self, parts: Sequence[Artifact]) -> DocumentCache:
        with self.metrics.loads.time():
            cache = load_cache(parts, self.model)
        self.metrics.bytes_read.inc(sum(part.nbytes for part in parts))
        return cache

    def most(self, prompt_tokens: int, request: ChatRequest | CompletionRequest) -> int:
        """Tokens of an answer, at most."""
        return request.most or min(self.limits.answer_tokens, self.model.context - prompt_tokens)

    def _bytes_of(self, behind: int, request: ChatRequest | CompletionRequest) -> int:
        """What the answers' own rows take, up to their longest."""
        return self._token_bytes * (behind + (request.most or self.limits.answer_tokens)) * request.choices

    def _tokens(self, request: ChatRequest | CompletionRequest) -> list[int]:
        if isinstance(request, ChatRequest):
            return chat_tokens(self.model, _messages(request))
        if isinstance(request.prompt, str):
            return text_tokens(self.model, request.prompt, is_first=True)
        size = self.model.text_config.vocab_size
        if not all(0 <= token < size for token in request.prompt):
            raise ApiError(400, f"prompt: expected token ids from 0 to {size - 1}", param="prompt")
        return request.prompt

    def _behind(self, request: ChatRequest | CompletionRequest, prefix: Prefix) -> list[int]:
        if isinstance(request, ChatRequest):
            return behind_documents(self.model, prefix, _messages(request))
        if isinstance(request.prompt, str):
            return text_tokens(self.model, request.prompt, is_first=False)
        return self._tokens(request)

    def _refuse_too_long(self, ids: Sequence[int], request: ChatRequest | CompletionRequest) -> None:
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


def _bytes_of_a_token(model: Model) -> int:
    """That a cache takes: found by caching one."""
    from ..engines.transformers import feed

    cache = new_cache(model, 1)
    feed(model, [model.text_config.vocab_size // 2], cache)
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
