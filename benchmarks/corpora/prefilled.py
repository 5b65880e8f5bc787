"""Texts in a store that stays, so that tuning a recipe pays for their prefill once, and what is measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.common.folders import BUILD
from benchmarks.common.output import Lines
from benchmarks.corpora.texts import Text, for_calibration, write
from kvtool.calibration.lookup import MissingCalibration, finder
from kvtool.codecs import Calibration, Recipe
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.documents.find import find as find_documents
from kvtool.errors import MismatchError
from kvtool.evaluation.candidates import Candidate, Coded, Raw, candidates
from kvtool.evaluation.run import OnProgress, Runner
from kvtool.evaluation.summary import Measured
from kvtool.evaluation.timing import measure_times
from kvtool.measurement.contexts import Context
from kvtool.model.chat_template import Prefix, prefix_of
from kvtool.store.local import LocalStore
from kvtool.store.segments import SegmentRef

FOLDER = BUILD / "prefilled"


@dataclass
class Prefilled:
    """Texts of one model, behind the prefix that chat requests have. ``store`` grows by what is placed."""

    model: kvtool.Model
    folder: Path = field(default_factory=lambda: FOLDER)
    prefix: Prefix = field(init=False)
    store: LocalStore = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.folder / self.model.fingerprint[:12]
        self.prefix = prefix_of(self.model)
        self.store = LocalStore(self.folder / "store")

    def place(self, texts: Iterable[Text]) -> list[SegmentRef]:
        """Where each text lies, prefilled now if it was not before. A text must fit one segment."""
        paths = write(texts, self.folder / "texts")
        report = kvtool.prefill(
            paths, model=self.model, store=self.store, replace=True, on_progress=Lines().prefilled
        )
        if report.problems:
            raise report.problems[0]
        # A raw cache takes 46 KB a token: what another text of the same name left behind goes.
        self.store.collect()
        names = {found.path: found.name for found in find_documents(paths)[0]}
        places = [SegmentRef(names[path.resolve()], 0) for path in paths]
        for place in places:
            if (segments := len(self.store[place.document].segments)) > 1:
                raise kvtool.KvtoolError(
                    place.document,
                    f"has {segments} segments, expected one",
                    f"{self.model.name} has a context of {self.model.context}, choose a smaller length",
                )
        return places

    def token_ids(self, place: SegmentRef) -> list[int]:
        """The segment's tokens, without its prefix."""
        return list(self.store.open(place.document, segment=place.segment).token_ids.tolist())

    def candidates(self, recipes: Iterable[str], calibrations: Iterable[Path] = ()) -> list[Coded]:
        """``recipes`` as ``kvtool eval`` has them. ``calibrations`` are files; of a method, the last is taken.

        What needs another takes the newest that this store has. Raises ``UsageError`` where there is none, and
        ``MismatchError`` for one of another model.
        """
        given: dict[str, Calibration] = {}
        for path in calibrations:
            one = Calibration.from_bytes(path.read_bytes())
            if one.model != self.model.fingerprint:
                raise MismatchError(
                    path,
                    (
                        f"is of model {one.model[:12]}…, expected {self.model.fingerprint[:12]}… "
                        f"({self.model.name})"
                    ),
                    "calibrate with this model",
                )
            given[one.method] = one
        newest = finder(self.store, list(self.store))

        def find(recipe: Recipe) -> Calibration:
            return given.get(recipe.calibration) or newest(recipe)

        return candidates(recipes, find)

    def calibrate(self, recipe: str, tokens: int) -> Calibration:
        """The store's calibration for ``recipe``, or one from texts that share no source with ``held_out``.

        ``tokens`` are those of each text.
        """
        try:
            return finder(self.store, list(self.store))(find_recipe(recipe))
        except MissingCalibration:
            texts = [text.text for text in for_calibration(self.model, tokens)]
            return kvtool.calibrate(self.store, model=self.model, recipe=recipe, texts=texts)

    def measure(
        self,
        contexts: Sequence[Context],
        compared: Sequence[Candidate],
        *,
        fresh: bool = False,
        on_progress: OnProgress | None = None,
    ) -> list[Measured]:
        """A record for each candidate and context, the raw cache's first.

        What an earlier run of the same code measured is used again unless ``fresh``: an interrupted run goes on.
        """
        runner = self.runner([Raw(), *compared], fresh)
        runner.on_progress = on_progress or Lines().measured
        runner.progress.total = sum(context.cost for context in contexts) * len(runner.candidates)
        with runner.bench() as bench:
            return [Measured(context, tuple(runner.measure(bench, context))) for context in contexts]

    def times(
        self, context: Context, compared: Sequence[Candidate], repeats: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What was timed over ``context``, and each candidate's times, the raw cache's first."""
        runner = self.runner([Raw(), *compared])
        runner.on_progress = Lines().measured
        runner.progress.total = len(context.token_ids) * repeats * (1 + len(runner.candidates))
        with runner.bench() as bench, bench.holding(runner.kv(context)):
            times = measure_times(bench, context, runner.candidates, repeats, runner.timed(context))
            return times.conditions, times.candidates

    def runner(self, compared: Sequence[Candidate], fresh: bool = False) -> Runner:
        """What measures contexts after the prefix of these texts."""
        stored = next(iter(self.store.values())).prefix_artifact
        return Runner(self.store, self.model, self.prefix, stored, compared, fresh)
