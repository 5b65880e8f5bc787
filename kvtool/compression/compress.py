"""Raw artifacts → compressed variants beside them: resolve, plan, encode, commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext

from kvtool.calibration.learning import OnProgress
from kvtool.codecs import Calibration
from kvtool.compression.commit import Committer
from kvtool.compression.encode import encode
from kvtool.compression.inputs import chosen_recipe
from kvtool.compression.joint.find import OnSetting
from kvtool.compression.plan import Plan, plan
from kvtool.compression.report import Report
from kvtool.compression.request import make_request
from kvtool.compression.resolve import Job, ModelSource, is_uncalibrated, resolve
from kvtool.store.base import Store
from kvtool.store.local import LocalStore, writable
from kvtool.store.manifest import RAW

log = logging.getLogger(__name__)


def compress(
    store: Store,
    names: str | Iterable[str] | None = None,
    *,
    recipe: str | None = None,
    keys: str | int | None = None,
    values: str | int | None = None,
    model: ModelSource = None,
    calibration: Calibration | str | None = None,
    name: str | None = None,
    source: str = RAW,
    replace: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = log.info,
    on_calibration: OnProgress = lambda _: None,
    on_setting: OnSetting = lambda done, total: None,
    on_progress: Callable[[Report], None] = lambda _: None,
    **parameters: int | float | str,
) -> Report:
    """Compresses the raw artifacts of ``names`` (default: all documents) into the variant ``name``.

    ``recipe`` is ``klt`` by default, and ``attention-matching`` where ``keep`` or ``resident`` is given. The variant is called
    after the recipe unless ``name`` is given. ``source`` may name the variant that prefill made for blending; that is
    compressed then, and the name ends so too. ``parameters`` are the recipe's, such as ``bits``. ``keys`` and ``values`` change
    one side alone, as ``pipeline_of`` says. A variant that exists with the same pipeline is left alone; one with another is
    refused unless ``replace``. ``dry_run`` reports which documents would be compressed, and no sizes.

    A recipe with a dial takes one of ``bits`` (per value, at most), ``ratio`` (to 16 bits, at least), ``max_kl`` (nats per
    token, at most) and ``preset`` instead of its setting, unless it has a parameter so called. The setting for the first three
    is found on a few segments (``rate_control``). ``Report.setting`` has it, with what was measured and whether that meets
    the target. Documents that join a variant that was asked for alike get its setting. That for a preset was found when the
    calibration was made; ``Report.preset`` has it, and ``say`` gets a line first, with what it costs. Without any of these,
    the preset is the recipe's default one.

    A recipe that leaves out tokens takes ``resident`` too: the share of the raw cache's memory that a loaded cache has at most,
    as 0.25 or "25%". That, ``bits`` and ``ratio`` decide ``keep`` and how finely what stays is coded, as far as the parameters
    leave them open. Where both are, a few settings of the size are measured on text that was held back, KL and facts that are
    still found, and the best is taken; ``say`` gets a line first, ``on_setting`` the progress. ``Report.setting`` has the
    choice. What cannot be met is refused.

    ``model`` is the one that prefilled the documents, or a function that loads it, which is called only if it is needed. It is
    run for recipes that need more than keys and values (``pipeline_of(recipe).needs``). By default it is the embedded one,
    if that prefilled any of the documents. ``calibration``, or the digest of one in the store, is for recipes that need one.
    By default they take the newest of their method for the documents' model. If there is none it is made first, as
    ``calibrate`` does from the store's documents; ``say`` gets a line, ``on_calibration`` the progress. ``klt``, the
    default, needs model and calibration; ``kivi`` needs neither.

    Raises ``UsageError`` for an unknown recipe, parameter or value, for a recipe that needs a model or a calibration
    without one, and for a calibration that the recipe has no use for. The problem of a single document that is named is
    raised too; those of several are in ``Report.problems``.
    """
    started = time.monotonic()
    store = writable(store)
    if not dry_run:
        store.check_key()
    recipe = chosen_recipe(recipe, prunes=not parameters.keys().isdisjoint(("keep", "resident")))
    request = make_request(
        recipe, parameters, keys=keys, values=values, calibration=calibration, name=name, source=source
    )
    chosen = [names] if isinstance(names, str) else list(dict.fromkeys(store if names is None else names))
    report = Report(request.variant, dry_run, documents_total=len(chosen), target=request.target)
    if not chosen:
        return report
    if dry_run and is_uncalibrated(request, store, chosen):
        report.compressed += [document for document in chosen if document in store]
        return report
    job = resolve(
        request,
        store,
        chosen,
        model,
        dry_run=dry_run,
        say=say,
        on_calibration=on_calibration,
        on_setting=on_setting,
    )
    report.setting, report.preset = job.setting, job.preset
    report.calibration_nbytes = sum(made.nbytes for made in job.pipeline.calibrations)
    if dry_run:
        planned = plan(store, job, chosen, replace)
        report.start(planned)
        report.compressed += planned.to_encode
        _say_cost(job, planned, say)
    else:
        # Asking for a document does not create a missing store.
        with store.writing() if store else nullcontext():
            _run(store, job, chosen, replace, report, say, on_progress)
    if report.problems and names is not None and len(chosen) == 1:
        raise report.problems[0]
    report.seconds = time.monotonic() - started
    return report


def _run(
    store: LocalStore,
    job: Job,
    names: Sequence[str],
    replace: bool,
    report: Report,
    say: Callable[[str], None],
    on_progress: Callable[[Report], None],
) -> None:
    """Plans, encodes and commits ``names``."""
    planned = plan(store, job, names, replace)
    report.start(planned)
    _say_cost(job, planned, say)
    # Encoding puts them too. Where nothing is encoded, a missing one would leave the variant unreadable.
    for calibration in job.pipeline.calibrations if planned.unchanged else ():
        store.put_calibration(calibration)
    committer = Committer(store, job, planned, report)
    # Closed whatever ends the loop, so that no other process goes on.
    with closing(encode(store, job, planned.segments(job.source), say)) as outcomes:
        for ref, outcome in outcomes:
            committer.take(ref, outcome)
            on_progress(report)


def _say_cost(job: Job, planned: Plan, say: Callable[[str], None]) -> None:
    """Says what a preset costs, if anything is to be encoded with it."""
    if job.preset and planned.to_encode:
        say(f"{job.variant}: {job.preset.describe()}")
