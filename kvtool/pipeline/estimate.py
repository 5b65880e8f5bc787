"""What a build would do, in tokens, seconds and bytes, without doing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvtool.config import Settings
from kvtool.counts import counted
from kvtool.model.model import Model
from kvtool.model.prefill_speed import recall
from kvtool.pipeline.differences import Difference
from kvtool.pipeline.project import Project
from kvtool.prefilling.inputs import prefill_options
from kvtool.prefilling.prefill import prefill
from kvtool.store.local import LocalStore


@dataclass(frozen=True)
class Estimate:
    """``tokens`` of ``documents`` to prefill; ``seconds`` and ``nbytes`` (of raw caches) are None where nothing tells them.

    ``variants`` are those that documents would get, ``gates`` those that would be measured.
    """

    documents: int
    tokens: int
    seconds: float | None
    nbytes: int | None
    variants: tuple[str, ...]
    gates: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

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
        lines += [f"would compress into {name}" for name in self.variants]
        return lines + [f"would measure {name} for its gate" for name in self.gates]


def estimate(
    project: Project, settings: Settings, differences: Sequence[Difference], load_model: Callable[[], Model]
) -> Estimate:
    """Loads the model where documents would be prefilled: its tokenizer counts their tokens. Raises as ``prefill`` does."""
    documents, tokens, seconds, nbytes = 0, 0, None, None
    if any(one.step == "prefill" for one in differences):
        model, store = load_model(), LocalStore(settings.store)
        options, _ = prefill_options(settings)
        planned = prefill(project.documents, model=model, store=store, replace=True, dry_run=True, **options)
        documents, tokens = len(planned.prefilled), planned.tokens_total
        speed = recall(model.fingerprint)
        seconds = tokens / speed if speed else None
        nbytes = _bytes_per_token(store, model) * tokens or None
    changed = documents > 0
    due = {one.variant for one in differences if one.step == "compress"}
    measured = {one.variant for one in differences if one.step == "evaluate"}
    wanted = project.by_name
    return Estimate(
        documents,
        tokens,
        seconds,
        nbytes,
        tuple(name for name in wanted if changed or name in due),
        tuple(
            name
            for name, one in wanted.items()
            if one.gate.given and (changed or name in due or name in measured)
        ),
    )


def _bytes_per_token(store: LocalStore, model: Model) -> int:
    """Of a raw cache of this model, as the store has them; 0 if it has none."""
    for document in store.readable():
        if document.model["fingerprint"] == model.fingerprint and "raw" in document.variants:
            return document.nbytes("raw") // document.n_tokens
    return 0
