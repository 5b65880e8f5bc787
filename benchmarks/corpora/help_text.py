"""Python's own help as prose: it is there wherever Python is."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import kvtool
from kvtool.model.chat_template import document_tokens


def text_of(model: kvtool.Model, tokens: int, *, skip: int = 0) -> str:
    """Prose of about ``tokens`` tokens: Python's own help texts, from token ``skip`` on."""
    whole = "\n\n".join(topics[name] for name in sorted(topics))
    ids = document_tokens(model, whole[: (skip + tokens) * 8])[skip : skip + tokens]
    return str(model.tokenizer.decode(ids))


def prefilled_help(
    model: kvtool.Model, folder: Path, documents: int, tokens: int
) -> tuple[kvtool.Store, list[str]]:
    for n in range(documents):
        (folder / f"{n:02}.txt").write_text(text_of(model, tokens, skip=n * tokens))
    store = kvtool.Store(folder / "store")
    report = kvtool.prefill(sorted(folder.glob("*.txt")), model=model, store=store)
    if report.problems:
        raise report.problems[0]
    return store, sorted(store)
