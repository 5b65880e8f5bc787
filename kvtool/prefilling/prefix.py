"""The prefix of documents to be prefilled: that of the store's other documents, whatever the time is."""

from __future__ import annotations

from kvtool.model.chat_template import Prefix, prefix_of, time_of
from kvtool.model.model import Model
from kvtool.store.base import Store


def prefix_for(
    store: Store,
    model: Model,
    *,
    system: str | None = None,
    text: str | None = None,
    none: bool = False,
) -> Prefix:
    """``prefix_of``, at the time at which the documents of ``store`` were prefilled.

    Where the chat template prints the time, the same document would have another prefix every day.
    """
    prefix = prefix_of(model, system=system, text=text, none=none)
    if "now" not in prefix.origin:
        return prefix
    documents = [d for d in store.readable() if d.model["fingerprint"] == model.fingerprint]
    for document in documents:
        # A store of an earlier version does not know the time, but has the tokens.
        if {**document.prefix["origin"], "now": None} == {**prefix.origin, "now": None}:
            return store.prefix(document.name, model)
    times = (time_of(document.prefix["origin"]) for document in documents)
    now = next(filter(None, times), None)
    return prefix_of(model, system=system, now=now) if now else prefix
