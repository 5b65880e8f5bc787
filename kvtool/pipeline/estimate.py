"""What a build would do, in tokens, seconds and bytes, without doing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvtool.config import Settings
from kvtool.counts import counted
from kvtool.errors import KvtoolError
from kvtool.model.model import Model
from kvtool.model.prefill_speed import recall
from kvtool.pipeline.differences import Difference, due_variants
from kvtool.pipeline.lock import Lock
from kvtool.pipeline.project import Project
from kvtool.prefilling.inputs import prefill_options
from kvtool.prefilling.prefill import prefill
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW


@dataclass(frozen=True)
class Estimate:
    """``tokens`` of ``documents`` to prefill; ``seconds`` and ``nbytes`` (of raw caches) are None where nothing tells them.

    ``variants`` are those that documents may lack, ``gates`` those that would be measured. ``problems`` would end the build.
    """

    documents: int
    tokens: int
    seconds: float | None
    nbytes: int | None
    variants: tuple[str, ...]
    gates: tuple[str, ...]
    problems: tuple[KvtoolError, ...]

    def to_json(self) -> dict[str, Any]:
        problems = [error.to_json() for error in self.problems]
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"problems": problems}

    @property
    def lines(self) -> list[str]:
        lines = []
        if self.documents:
            line = f"would prefill {counted(self.documents, 'document')}, {counted(self.tokens, 'token')}"
            if self.seconds is not None:
                line += f", about {max(1, round(self.seconds))} s"
            if self.nbytes is not None:
                line += f" and {self.nbytes / 1e6:,.0f} MB"
            lines.append(line)
        lines += [f"would compress into {name} what lacks it" for name in self.variants]
        return lines + [f"would measure {name} for its gate" for name in self.gates]


def estimate(
    project: Project,
    settings: Settings,
    lock: Lock | None,
    differences: Sequence[Difference],
    load_model: Callable[[], Model],
) -> Estimate:
    """Loads the model where documents would be prefilled: its tokenizer counts their tokens. Raises as ``prefill`` does."""
    documents, tokens, seconds, nbytes = 0, 0, None, None
    problems: Sequence[KvtoolError] = ()
    if any(one.step == "prefill" for one in differences):
        model, store = load_model(), LocalStore(settings.store)
        options, _ = prefill_options(settings)
        planned = prefill(project.documents, model=model, store=store, replace=True, dry_run=True, **options)
        documents, tokens, problems = len(planned.prefilled), planned.tokens_total, planned.problems
        speed = recall(model.fingerprint)
        seconds = tokens / speed if speed else None
        nbytes = _bytes_per_token(store, model) * tokens or None
    due = due_variants(project, lock, differences)
    measured = {one.variant for one in differences if one.step == "evaluate"}
    # Other documents are another measurement.
    every = documents > 0 or any(one.step == "remove" for one in differences)
    of_variant = {name: blend.variant for name, blend in project.blends_by_name.items()}
    gates = [name for name in project.gates if every or name in measured or of_variant.get(name, name) in due]
    return Estimate(documents, tokens, seconds, nbytes, tuple(due), tuple(gates), tuple(problems))


def _bytes_per_token(store: LocalStore, model: Model) -> int:
    """Of a raw cache of this model, as the store has them; 0 if it has none."""
    for document in store.readable():
        if document.model["fingerprint"] == model.fingerprint and RAW in document.variants:
            return document.nbytes(RAW) // document.n_tokens
    return 0
