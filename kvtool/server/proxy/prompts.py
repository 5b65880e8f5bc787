"""Documents by name and a prompt → token ids, and the stored blend that they begin with.

Only the tokenizer is needed. Whether a document's cache is of the weights that an engine has loaded, the engine's connector asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvtool.artifact.read import Artifact
from kvtool.blending.layout import Cached, chosen_document
from kvtool.digest import digest_json
from kvtool.errors import MismatchError, StoreError
from kvtool.model.chat_template import Prefix
from kvtool.model.fingerprint import digest_tokenizer
from kvtool.model.model import Model
from kvtool.server.http.errors import ApiError
from kvtool.server.proxy.blends import Blends, FoundBlend
from kvtool.server.runtime.request import Prompt
from kvtool.server.runtime.request_plan import lay_out_documents, prefix_before
from kvtool.store.base import Store
from kvtool.store.catalog.catalog import DocumentMissing
from kvtool.store.headers import headers_of
from kvtool.store.manifest import RAW


@dataclass(frozen=True)
class EnginePrompt:
    """A prompt's ``token_ids``; ``document_tokens`` of them, and ``blend``, are those of its documents."""

    token_ids: list[int]
    document_tokens: int
    blend: FoundBlend | None


class Prompts:
    """Prompts over the documents of ``store``, for engines that run ``model``, whose tokenizer alone is loaded."""

    def __init__(self, store: Store, model: Model) -> None:
        self.store, self.model = headers_of(store), model
        self.blends = Blends(store)

    def warm_up(self) -> None:
        """Loads what the first request would wait for."""
        _ = self.model.text_tokenizer, self._identity
        self.blends.follow()

    def after(self, names: Sequence[str], prompt: Prompt) -> EnginePrompt:
        """``prompt`` after the documents ``names``, as ``kvtool.ask`` and kvtool's own server put them.

        Raises ``ApiError`` for a document that is missing or has other tokens than the model's, and what ``lay_out`` raises.
        """
        documents = [self._named(name) for name in names]
        with self.store.using(*(document.name for document in documents)):
            prefix, is_moved = prefix_before(documents, prompt, self.model, self.store)
            return self._laid_out(documents, prompt, prefix, is_moved)

    def _laid_out(
        self, documents: Sequence[Cached], prompt: Prompt, prefix: Prefix, is_moved: bool
    ) -> EnginePrompt:
        before = prefix if is_moved else None
        placed = [self._readable(document) for document in documents]
        layout = lay_out_documents(self.store, placed, self.model, prefix=before, refuse=self._refuse)
        question = prompt.tokens_after(self.model, prefix)
        if not question:
            raise ApiError(400, f"{prompt.field}: expected at least one token", param=prompt.field)
        token_ids = [*layout.token_ids.tolist(), *question]
        blend = None if is_moved else self.blends.of(documents, token_ids)
        return EnginePrompt(token_ids, len(layout.token_ids), blend)

    def _named(self, name: str) -> Cached:
        try:
            self.store.check_name(name)
        except StoreError:
            raise DocumentMissing(name, "is no name of a document") from None
        return chosen_document(self.store, name)

    def _readable(self, document: Cached) -> Cached:
        """``document`` in a variant that the store has: any has the same tokens."""
        variants = self.store[document.name].variants
        if document.variant or RAW in variants or not variants:
            return document
        return Cached(document.name, variants[0])

    @cached_property
    def _identity(self) -> dict[str, str]:
        """The fields of a model's identity that decide which tokens a text is."""
        return {
            "tokenizer": digest_tokenizer(self.model.directory),
            "chat_template": digest_json(self.model.tokenizer.chat_template),
        }

    def _refuse(self, part: Artifact, model: Model) -> None:
        for field, value in self._identity.items():
            if part.meta["model"].get(field) != value:
                reason = f"was made by a model with another {field.replace('_', ' ')} than {model.name}"
                raise MismatchError(part.path, reason, "name the model that the engine runs with --model")
