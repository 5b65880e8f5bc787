"""Raw artifacts → compressed variants beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from kvtool.artifact.identity import compressed_identity
from kvtool.calibration.calibrate import maker
from kvtool.calibration.lookup import FindCalibration, MissingCalibration, finder
from kvtool.codecs import Calibration, Pipeline
from kvtool.codecs.registry import recipes
from kvtool.compression.pipeline_options import pipeline_of
from kvtool.compression.rate_control import Setting, Target, asked, turned
from kvtool.compression.workers import Task, encode_all, encode_segment
from kvtool.engines.stage_inputs import measure_inputs, refuse_unmet
from kvtool.errors import KvtoolError, MismatchError, StoreError, UsageError
from kvtool.store.base import Store
from kvtool.store.local import LocalStore, writable
from kvtool.store.manifest import AVERAGED, AVERAGED_IN_RECORDS, RAW, Document, Variant, averaged_name

if TYPE_CHECKING:
    from kvtool.model.model import Model

DEFAULT_RECIPE = "klt"


@dataclass
class Report:
    """What a run has done so far. Bytes are of the documents' raw artifacts and of the variants just made, and of the
    calibrations that these need, which all documents of a model share.

    ``strayed`` are segments so unlike the calibration's text that they were coded otherwise, in more bytes.
    """

    compressed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)
    strayed: list[Task] = field(default_factory=list)
    variant: str = ""
    documents_total: int = 0
    segments_total: int = 0
    segments_done: int = 0
    raw_nbytes: int = 0
    nbytes: int = 0
    calibration_nbytes: int = 0
    n_elements: int = 0
    seconds: float = 0.0
    target: Target | None = None
    setting: Setting | None = None


def compress(
    store: Store,
    names: str | Iterable[str] | None = None,
    *,
    recipe: str = DEFAULT_RECIPE,
    keys: str | int | None = None,
    values: str | int | None = None,
    model: Model | None = None,
    calibration: Calibration | str | None = None,
    name: str | None = None,
    of: str = RAW,
    replace: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
    **parameters: int | float | str,
) -> Report:
    """Compresses the raw artifacts of ``names`` (default: all documents) into the variant ``name``.

    The variant is called after the recipe unless ``name`` is given; with ``of`` "averaged", what prefill made for blending is
    compressed instead, and the name ends so too. ``parameters`` are the recipe's, such as
    ``bits``; ``keys`` and ``values`` change one side alone, as ``pipeline_of`` says. A variant that is there with
    the same pipeline is left alone; one with another is refused unless ``replace``. ``dry_run`` says which
    documents would be compressed, and reports no sizes.

    A recipe with a dial takes one of ``bits`` (per value, at most), ``ratio`` (to 16 bits, at least), ``max_kl`` (nats per
    token, at most) and ``preset`` instead of its setting, unless it has a parameter so called. The setting is found on a
    few segments (``rate_control``); ``Report.setting`` has it, what was measured there, and whether that is what was
    asked for. Documents that join a variant that was asked for alike get its setting.

    ``model``, the one that the documents were prefilled with, is run for recipes that need more than keys and
    values (``pipeline_of(recipe).needs``). ``calibration``, or the digest of one in the store, is for recipes that
    need one; by default they take the newest of their method for the documents' model, and if there is none it is
    made first, as ``calibrate`` does from the store's documents. ``klt``, the default, needs both; ``kivi`` needs
    neither. Without ``model`` the embedded one is loaded where one is needed, if it prefilled any of the documents.

    Raises ``UsageError`` for an unknown recipe, parameter or value, for a recipe that needs a model or a calibration
    without one, and for a calibration that the recipe has no use for.
    """
    started = time.monotonic()
    store = writable(store)
    variant = variant_name(recipe, name, of)
    chosen = [names] if isinstance(names, str) else list(dict.fromkeys(store if names is None else names))
    report = Report(variant=variant, documents_total=len(chosen))
    if not chosen:
        return report
    report.target, left = asked(recipe, parameters)
    if report.target and of != RAW:
        raise UsageError(
            f"--of {of}",
            "what --bits, --ratio, --max-kl and --preset find is measured on the raw cache",
            f"compress that, and then --of {of} with the setting that was found",
        )
    if model is None and not dry_run:
        find = finder(store, chosen, calibration)
        if _needs_model(partial(pipeline_of, recipe, keys, values, find, **left), report.target):
            model = _default_model(store, chosen)
    find = finder(store, chosen, calibration, None if dry_run else maker(store, model))
    if dry_run and _is_uncalibrated(recipe, find):
        report.compressed += [document for document in chosen if document in store]
        return report
    made: dict[str, object] = {"name": recipe} if of == RAW else {"name": recipe, "of": AVERAGED_IN_RECORDS}

    def build(**setting: float) -> Pipeline:
        return pipeline_of(recipe, keys, values, find, **{**left, **setting})

    if report.target is None:
        pipeline = build()
    else:
        made |= {"target": report.target.to_json(), "parameters": left}
        there = _asked_alike(store, chosen, variant, made) if calibration is None else None
        if there is None:
            refuse_unmet(recipe, build(), model)
            report.setting = turned(report.target, recipe, build, store, chosen, model)
        pipeline = there or build(**(report.setting.parameter if report.setting else {}))
    if calibration is not None and not pipeline.calibrations:
        raise UsageError("--calibration", f"recipe {recipe!r} takes none", "leave it out")
    refuse_unmet(recipe, pipeline, model)
    made["pipeline"] = pipeline.to_config()
    report.calibration_nbytes = sum(held.nbytes for held in pipeline.calibrations)
    # An empty store is not made one by asking.
    with store.writing() if store and not dry_run else nullcontext():
        run = _Run(store, variant, of, made, pipeline, report)
        for document in chosen:
            try:
                run.look_at(document, replace)
            except KvtoolError as error:
                run.fail(document, error)
        if dry_run:
            report.compressed += list(run.unfinished)
        else:
            # Who encodes puts them too; without them, what is there already cannot be read.
            for held in pipeline.calibrations if report.unchanged else ():
                store.put_calibration(held)
            # Closed by whatever ends the loop, so that no other process goes on.
            with closing(run.encoded(model)) as outcomes:
                for task, outcome in outcomes:
                    run.take(task, outcome)
                    on_progress(report)
    if report.problems and names is not None and len(chosen) == 1:
        raise report.problems[0]
    report.seconds = time.monotonic() - started
    return report


def _needs_model(build: Callable[[], Pipeline], target: Target | None) -> bool:
    try:
        needs = build().needs
    except MissingCalibration:
        return True
    return bool(needs) or (target is not None and target.needs_model)


def _default_model(store: Store, names: Iterable[str]) -> Model | None:
    """The model that ``load_model`` gives where none is named, if any of the documents is its own."""
    from kvtool.model.model import load_model

    try:
        found = load_model()
    except KvtoolError:
        return None
    own = (store[name].model["fingerprint"] for name in names if name in store)
    return found if found.fingerprint in own else None


def variant_name(recipe: str, name: str | None, of: str = RAW) -> str:
    """What the variant is called. Raises ``UsageError`` for the names of what prefill made, and for another ``of``."""
    if of not in (RAW, AVERAGED):
        raise UsageError(f"--of {of}", f"expected {RAW} or {AVERAGED}, which prefill makes")
    variant = name or recipe
    if variant in (RAW, AVERAGED, AVERAGED_IN_RECORDS):
        raise UsageError(f"--name {variant}", "is kept for what prefill made", "choose another")
    return variant if of == RAW else averaged_name(variant)


def _is_uncalibrated(recipe: str, find: FindCalibration) -> bool:
    """Whether a calibration is still to be made for a recipe, so that nothing can be there already."""
    known = recipes().get(recipe)
    if known is None or not known.calibration:
        return False
    try:
        find(known)
    except MissingCalibration:
        return True
    return False


def _asked_alike(
    store: Store, names: Iterable[str], variant: str, made: Mapping[str, object]
) -> Pipeline | None:
    """The pipeline of a variant of that name that was asked for in the same words, if any of the documents has one."""
    for name in names:
        with suppress(KvtoolError):
            for segment in store[name].segments:
                there = segment.variants.get(variant)
                if there and {**there.recipe, "pipeline": None} == {**made, "pipeline": None}:
                    return Pipeline.from_config(there.recipe["pipeline"], store.calibrations)
    return None


def _refuse_other_model(document: Document, calibration: Calibration) -> None:
    there = document.model["fingerprint"]
    if calibration.model != there:
        of = f"model {calibration.model[:12]}…" if calibration.model else "no model that it names"
        raise MismatchError(
            document.name,
            (
                f"was prefilled with {document.model['name']} (model {there[:12]}…), calibration "
                f"{calibration.digest} is of {of}"
            ),
            "take another, or run kvtool calibrate with the documents' model",
        )


@dataclass
class _Run:
    """One call: which segments are still to be encoded, and what has come of the others."""

    store: LocalStore
    variant: str
    of: str
    made: dict[str, object]
    pipeline: Pipeline
    report: Report
    unfinished: dict[str, dict[int, Variant | None]] = field(default_factory=dict)
    seen: dict[str, Document] = field(default_factory=dict)

    def look_at(self, name: str, replace: bool) -> None:
        """Finds out what is to be done for a document. Raises KvtoolError if it cannot be."""
        document = self.store[name]
        for calibration in self.pipeline.calibrations:
            _refuse_other_model(document, calibration)
        segments: dict[int, Variant | None] = {}
        for index, segment in enumerate(document.segments):
            there = segment.variants.get(self.variant)
            if there and there.recipe != self.made and not replace:
                raise StoreError(
                    name,
                    f"has a variant {self.variant!r} made otherwise",
                    "give this one another --name, or --replace it",
                )
            is_made = there is not None and there.recipe == self.made and self.store.holds(there)
            segments[index] = there if is_made else None
        self.report.segments_total += len(segments)
        self.report.segments_done += sum(there is not None for there in segments.values())
        if all(segments.values()):
            self._count(document, segments)
            self.report.unchanged.append(name)
        else:
            self.unfinished[name], self.seen[name] = segments, document

    def encoded(self, model: Model | None) -> Generator[tuple[Task, Variant | KvtoolError], None, None]:
        """Each segment that is not there, with its artifact or with what went wrong."""
        tasks = [
            Task(name, index, self.of)
            for name, segments in self.unfinished.items()
            for index, there in segments.items()
            if there is None
        ]
        left: list[Task] = []
        # An interrupted run may have left artifacts that no manifest names yet.
        known = self.store.known() if tasks else {}
        for task in tasks:
            try:
                original = self.store.open(task.document, task.of, task.segment)
            except KvtoolError as error:
                yield task, error
                continue
            if found := known.get(compressed_identity(original.meta, self.pipeline)):
                yield task, found
            else:
                left.append(task)
        if self.pipeline.needs and model is not None:
            for task in left:
                yield task, self._measured(task, model)
        else:
            yield from encode_all(self.store, left, self.pipeline)

    def take(self, task: Task, outcome: Variant | KvtoolError) -> None:
        """Notes what came of a segment; a document is committed with its last."""
        self.report.segments_done += 1
        if task.document not in self.unfinished:
            return
        if isinstance(outcome, KvtoolError):
            self.fail(task.document, outcome)
            return
        try:
            self._note_if_strayed(task, outcome)
        except KvtoolError as error:
            self.fail(task.document, error)
            return
        segments = self.unfinished[task.document]
        segments[task.segment] = Variant(outcome.artifact, outcome.nbytes, self.made)
        if all(segments.values()):
            try:
                self._commit(task.document, segments)
            except KvtoolError as error:
                self.fail(task.document, error)
            else:
                del self.unfinished[task.document]

    def _note_if_strayed(self, task: Task, made: Variant) -> None:
        if self.pipeline.chooses and self.store.open_artifact(made).contents.pipeline != self.pipeline:
            self.report.strayed.append(task)

    def fail(self, document: str, error: KvtoolError) -> None:
        self.unfinished.pop(document, None)
        self.report.problems.append(error)

    def _measured(self, task: Task, model: Model) -> Variant | KvtoolError:
        try:
            parts = self.store.parts(task.document, task.of, task.segment)
            inputs = measure_inputs(model, parts, self.pipeline.needs)
            return encode_segment(self.store, task, self.pipeline, inputs)
        except KvtoolError as error:
            return error

    def _commit(self, name: str, segments: dict[int, Variant | None]) -> None:
        with self.store.changing():
            document = self.store[name]
            if self._sources(document) != self._sources(self.seen[name]):
                raise StoreError(name, "was prefilled again meanwhile", "compress it again")
            for index, variant in segments.items():
                if variant is not None:
                    document = document.with_variant(index, self.variant, variant)
            self.store.commit(document)
        self._count(document, segments)
        self.report.compressed.append(name)

    def _sources(self, document: Document) -> list[Variant | None]:
        """What each segment's variants are made from."""
        return [segment.variants.get(self.of) for segment in document.segments]

    def _count(self, document: Document, segments: dict[int, Variant | None]) -> None:
        for index, variant in segments.items():
            original = self.store.open(document.name, self.of, index)
            self.report.raw_nbytes += original.nbytes
            self.report.nbytes += variant.nbytes if variant else 0
            self.report.n_elements += original.contents.geometry.n_elements
