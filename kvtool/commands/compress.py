"""kvtool compress: make compressed variants of what a store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kvtool.commands import output
from kvtool.commands.options import (
    AsJson,
    DocumentNames,
    DryRun,
    ModelFlags,
    given,
    load_model,
    with_settings,
)
from kvtool.errors import GATE, UsageError

if TYPE_CHECKING:
    from kvtool.compression.compress import Report
    from kvtool.config import Settings
    from kvtool.store.local import Store


@with_settings(ModelFlags)
def run(
    names: DocumentNames = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Compress with this recipe; kvtool recipes lists them.")
    ] = "klt",
    bits: Annotated[
        Optional[float],
        typer.Option(
            "--bits",
            help="Spend this many bits per value: on codes or, for recipes with rate control, at most and in all.",
        ),
    ] = None,
    ratio: Annotated[
        Optional[float],
        typer.Option(
            "--ratio", metavar="R", help="Reach at least this ratio to 16 bits per value, all bytes counted."
        ),
    ] = None,
    max_kl: Annotated[
        Optional[float],
        typer.Option(
            "--max-kl", metavar="X", help="Keep the KL to the raw cache at or below X nats per token."
        ),
    ] = None,
    preset: Annotated[
        Optional[str],
        typer.Option("--preset", help="Use this preset: near-lossless, balanced or small."),
    ] = None,
    keys: Annotated[
        Optional[str],
        typer.Option(
            "--keys", metavar="SIDE", help="Compress keys differently: BITS, RECIPE or RECIPE:BITS."
        ),
    ] = None,
    values: Annotated[
        Optional[str],
        typer.Option(
            "--values", metavar="SIDE", help="Compress values differently: BITS, RECIPE or RECIPE:BITS."
        ),
    ] = None,
    recent: Annotated[
        Optional[int],
        typer.Option("--recent", metavar="N", help="Keep the last N tokens in 16 bits."),
    ] = None,
    sinks: Annotated[
        Optional[int],
        typer.Option("--sinks", metavar="N", help="Keep the first N tokens in 16 bits."),
    ] = None,
    parameters: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Set any parameter of the recipe; kvtool recipes RECIPE lists them; repeatable.",
        ),
    ] = None,
    calibration: Annotated[
        Optional[str],
        typer.Option(
            "--calibration",
            metavar="DIGEST",
            help="Use this calibration of the store (default: the newest for the documents' model).",
        ),
    ] = None,
    name: Annotated[
        Optional[str], typer.Option("--name", help="Name the variant (default: as the recipe).")
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="Compress this variant: raw, or averaged, which prefill --neighbours makes for blending.",
        ),
    ] = "raw",
    *,
    settings: Settings,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a variant of that name that was made otherwise.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Compress the raw artifacts of a store into a variant beside them.

    Some recipes measure attention: for these, the model that the documents were prefilled with is run. klt, the default,
    is one of them, and makes a calibration of that model first, once. kivi is quick and needs no model.
    """
    from kvtool.calibration.calibrate import maker
    from kvtool.compression.compress import compress, variant_name
    from kvtool.compression.pipeline_options import pipeline_of
    from kvtool.compression.rate_control import asked
    from kvtool.store.calibrations import Make, MissingCalibration, finder
    from kvtool.store.local import Store

    # Raises for a name that is reserved, before a calibration is made, which takes minutes.
    variant_name(recipe, name, source)
    store = Store(settings.store)
    of_recipe = {
        **given(
            bits=_whole(bits), ratio=_whole(ratio), max_kl=max_kl, preset=preset, recent=recent, sinks=sinks
        ),
        **_parse(parameters or []),
    }
    documents = names or list(store)
    target, of_pipeline = asked(recipe, of_recipe)

    def needs_model(make: Make | None = None) -> bool:
        find = finder(store, documents, calibration, make)
        return bool(documents and pipeline_of(recipe, keys, values, find, **of_pipeline).needs)

    model = None
    try:
        if needs_model() or (target and target.needs_model):
            model = load_model(settings)
    except MissingCalibration:
        if not dry_run:
            model = load_model(settings)
            with output.Bar("calibrating") as bar:
                needs_model(maker(store, model, output.note, output.calibration_progress(bar)))
    with output.Bar("compressing") as bar:
        report = compress(
            store,
            names or None,
            recipe=recipe,
            keys=keys,
            values=values,
            model=model,
            calibration=calibration,
            name=name,
            of=source,
            replace=replace,
            dry_run=dry_run,
            on_progress=lambda r: bar.update(r.segments_done, r.segments_total, "segments"),
            **of_recipe,
        )
    output.emit(to_json(report, dry_run), render(report, store, dry_run), as_json)
    if report.setting:
        output.note(_reached(report))
    code = output.exit_code(report.problems, len(report.compressed) + len(report.unchanged))
    return max(GATE, code) if report.setting and not report.setting.met else code


def _whole(number: float | None) -> float | None:
    """As an integer where it is one: recipes count bits in integers."""
    return int(number) if number is not None and number == int(number) else number


def _parse(options: Sequence[str]) -> Mapping[str, int | float | str]:
    """The parameters that ``--set`` gives. Raises ``UsageError`` for one that is a flag, not a recipe's parameter."""
    from inspect import signature

    from kvtool.compression.compress import compress
    from kvtool.compression.pipeline_options import parameters_of

    parsed = parameters_of(options, "--set", "--set group=64")
    for name, value in parsed.items():
        if name in signature(compress).parameters:
            raise UsageError(
                f"--set {name}={value}", f"{name} is no parameter of a recipe", "kvtool compress --help"
            )
    return parsed


def to_json(report: Report, dry_run: bool) -> dict[str, Any]:
    fallback = [{"document": task.document, "segment": task.segment} for task in report.strayed]
    return {
        "variant": report.variant,
        "dry_run": dry_run,
        "compressed": report.compressed,
        "unchanged": report.unchanged,
        "fallback_segments": fallback,
        "problems": [error.to_json() for error in report.problems],
        "raw_bytes": report.raw_nbytes,
        "bytes": report.nbytes,
        "calibration_bytes": report.calibration_nbytes,
        "bits_per_value": round(_bits_per_value(report), 4),
        "seconds": round(report.seconds, 3),
    }


def render(report: Report, store: Store, dry_run: bool) -> output.Lines:
    if dry_run:
        summary = f"{report.variant}: would compress {len(report.compressed)} documents"
        return output.Lines(report.compressed, [summary])
    notes = []
    if report.n_elements:
        notes.append(_summary(report))
    elif not report.problems:
        notes.append(f"nothing to compress: {store.root} is empty; run kvtool prefill first")
    if report.strayed:
        some = ", ".join(f"{task.document} (segment {task.segment})" for task in report.strayed[:3])
        notes.append(
            f"{report.variant}: {len(report.strayed)} segments are unlike the calibration's text and were coded by "
            f"the fallback, in more bytes: {some}{', …' if len(report.strayed) > 3 else ''}; kvtool calibrate on documents like "
            "these makes them smaller"
        )
    return output.Lines(notes=notes)


def _summary(report: Report) -> str:
    bits = _bits_per_value(report)
    line = f"{report.variant}: compressed {len(report.compressed)} documents in {report.seconds:.1f} s"
    if report.unchanged:
        line += f"; {len(report.unchanged)} were there already"
    line += (
        f"; {output.size(report.raw_nbytes)} → {output.size(report.nbytes)}, {bits:.2f} bits per value, "
        f"ratio {16 / bits:.1f} to 16 bits"
    )
    if report.calibration_nbytes:
        nbytes = output.size(report.calibration_nbytes)
        line += f"; beside them {nbytes} of calibration, for all documents of the model"
    return line


def _reached(report: Report) -> str:
    """What rate control found, and how near that comes to the target."""
    assert report.setting is not None
    assert report.target is not None
    setting = f"{report.setting.name}={report.setting.value:g}"
    measured = report.target.said(report.setting.measured)
    if report.setting.met:
        return f"{report.variant}: {setting}, {measured} on a few segments"
    return f"{report.variant}: {setting} comes nearest to the target, with {measured}"


def _bits_per_value(report: Report) -> float:
    return 8 * report.nbytes / report.n_elements if report.n_elements else 0.0
