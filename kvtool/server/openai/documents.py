"""The documents that a request names, by ``documents`` or ``cached_content``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from kvtool.blending.layout import Cached, chosen_document
from kvtool.errors import StoreError
from kvtool.model.model import Model
from kvtool.server.cached_contents.store import KIND, Contents
from kvtool.server.http.errors import ApiError
from kvtool.server.openai.schemas import AnyRequest
from kvtool.server.runtime.errors import document_missing
from kvtool.server.runtime.request import HeldDocument
from kvtool.store.base import Store
from kvtool.store.manifest import RAW


def named_documents(
    request: AnyRequest, store: Store, contents: Contents, model: Model
) -> Sequence[HeldDocument] | None:
    """The documents to hold while ``request`` is answered, in order; None if it names none.

    Cached contents that are named as documents have the same conditions as by ``cached_content``. Raises ``ApiError`` where
    both fields are given.
    """
    if request.cached_content is None:
        names = request.documents
    elif request.documents is None:
        names = [KIND + request.cached_content.removeprefix(KIND)]
    else:
        message = "cached_content: cannot be given with documents; name it among these instead"
        raise ApiError(400, message, param="cached_content")
    if names is None:
        return None
    return [
        partial(_held_content, contents, name, model)
        if name.startswith(KIND)
        else partial(_stored, store, name)
        for name in names
    ]


@contextmanager
def _held_content(contents: Contents, name: str, model: Model) -> Iterator[Cached]:
    with contents.using(name, model) as document:
        yield Cached(document, RAW)


@contextmanager
def _stored(store: Store, name: str) -> Iterator[Cached]:
    """Any document of the store, which is not removed to make room within the context."""
    try:
        store.check_name(name)
    except StoreError:
        raise document_missing(name) from None
    with store.using(name):
        yield chosen_document(store, name)
