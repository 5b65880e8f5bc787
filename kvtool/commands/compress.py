"""kvtool compress: make compressed variants of what a store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_presets, complete_recipe
from kvtool.commands.options import (
    AsJson,
    DocumentNames,
    DryRun,
    ModelFlags,
    given,
    load_model,
    with_settings,
)
from kvtool.commands.repeats import Repeatable
from kvtool.counts import counted
from kvtool.errors import DONE, GATE, UsageError

if TYPE_CHECKING:
    from kvtool.compression.report import Report
    from kvtool.config import Settings
    from kvtool.store.base import Store


@with_settings(ModelFlags)
def run(
    names: DocumentNames = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Compress with this recipe; kvtool recipes lists them (default: klt; attention-matching with --keep or "
            "--resident).",
            autocompletion=complete_recipe,
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            help="Spend this many bits per value: on codes or, for recipes with rate control, at most and in all."
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(metavar="R", help="Reach at least this ratio to 16 bits per value, all bytes counted."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(metavar="X", help="Keep the KL to the raw cache at or below X nats per token."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Use the setting that keeps this preset's promise on the model: near-lossless, balanced (default) or small.",
            autocompletion=complete_presets,
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="SIDE", help="Compress keys differently: BITS, RECIPE or RECIPE:BITS."),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(metavar="SIDE", help="Compress values differently: BITS, RECIPE or RECIPE:BITS."),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Keep this share of the tokens, with a recipe that prunes: attention-matching, or as kvzip or kvzip+kivi.",
        ),
    ] = None,
    resident: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Leave out tokens until loaded caches take at most this share of the raw ones' memory, as 25%.",
        ),
    ] = None,
    recent: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the last N tokens in 16 bits.")
    ] = None,
    sinks: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the first N tokens in 16 bits.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Set any parameter of the recipe; kvtool recipes RECIPE lists them; repeatable.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="Use this calibration of the store (default: the newest for the documents' model).",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name the variant (default: as the recipe).")] = None,
    source: Annotated[
        str,
        typer.Option(
            help="Compress this variant: raw, or averaged, which prefill --neighbours makes for blending."
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
    is one of them, and makes a calibration of that model first, once. What its presets cost on the model is measured then;
    kvtool recipes klt has what they promise. kivi is quick and needs no model.
    """
    from kvtool.compression.inputs import chosen_recipe, compress_inputs, variant_name

    recipe = chosen_recipe(recipe, prunes=keep is not None or resident is not None)
    chosen, variant = names or None, variant_name(recipe, name, source)
    command = Repeatable(
        "compress",
        settings,
        compress_inputs(settings.store, chosen, variant),
        documents=chosen,
        recipe=[recipe, bits, ratio, max_kl, preset, keys, values, keep, resident, recent, sinks, parameters],
        variant=[calibration, name, source, replace],
    )
    if not dry_run and command.replay(as_json):
        return DONE

    from kvtool.compression.compress import compress
    from kvtool.store.open import open_store

    store = open_store(settings.store, existing=True)
    targets = given(bits=_whole(bits), ratio=_whole(ratio), max_kl=max_kl, resident=resident, preset=preset)
    settings_of_recipe = {
        **targets,
        **given(keep=keep, recent=recent, sinks=sinks),
        **_parse(parameters or []),
    }
    with output.Bars() as bars:
        report = compress(
            store,
            chosen,
            recipe=recipe,
            keys=keys,
            values=values,
            model=lambda: load_model(settings),
            calibration=calibration,
            name=name,
            source=source,
            replace=replace,
            dry_run=dry_run,
            say=output.note,
            on_calibration=output.calibration_progress(bars),
            on_setting=lambda done, total: bars.show("measuring").update(done, total, "settings"),
            on_progress=lambda r: bars.show("compressing").update(
                r.segments_done, r.segments_total, "segments"
            ),
            **settings_of_recipe,
        )
    output.emit(report.to_json(), render(report, store), as_json)
    code = output.exit_code(report.problems, len(report.compressed) + len(report.unchanged))
    # A promise that nobody asked for is no gate: the line that says that it is not kept is enough.
    unkept = preset is not None and report.preset is not None and report.preset.is_unmet
    if unkept or (report.setting and not report.setting.met):
        return max(GATE, code)
    # A setting that was measured is no part of what a repetition says, which takes it from the variant, or measures it again.
    if code == DONE and report.entries and not (dry_run or report.setting):
        after = compress_inputs(settings.store, chosen, variant)
        if after:
            again = report.repeated(after["names"])
            command.remember(after, report.entries, again.to_json(), render(again, store))
    return code


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
            reason = f"{name} is no parameter of a recipe"
            raise UsageError(f"--set {name}={value}", reason, "kvtool compress --help")
    return parsed


def render(report: Report, store: Store) -> output.Lines:
    if report.dry_run:
        summary = f"{report.variant}: would compress {counted(len(report.compressed), 'document')}"
        return _lines(report, [summary], report.compressed)
    notes = []
    if report.n_elements:
        notes.append(_summary(report))
    elif not report.problems:
        notes.append(f"nothing to compress: {store} is empty; run kvtool prefill first")
    if report.unlike:
        notes.append(_unlike(report))
    return _lines(report, notes)


def _lines(report: Report, notes: Sequence[str], data: Sequence[str] = ()) -> output.Lines:
    if _is_kept(report):
        return output.Lines(data, [*notes, *_reached(report)])
    return output.Lines(data, notes, failures=_reached(report))


def _unlike(report: Report) -> str:
    """Which documents the calibration does not fit, what they cost, and what to do about it."""
    n, others = len(report.unlike), report.others_bits_per_value
    some = [f"{name} ({sizes.bits_per_value:.2f} bits)" for name, sizes in list(report.unlike.items())[:3]]
    return (
        f"{report.variant}: {counted(n, 'document is', 'documents are')} unlike the calibration's text and "
        f"{'takes' if n == 1 else 'take'} more bits per value"
        + (f", beside {others:.2f} of the others" if others is not None else "")
        + f": {', '.join(some)}{', …' if n > 3 else ''}; kvtool calibrate learns from your documents, and then "
        "kvtool compress --replace makes these smaller"
    )


def _summary(report: Report) -> str:
    bits = report.bits_per_value
    line = f"{report.variant}: compressed {counted(len(report.compressed), 'document')} in {report.seconds:.1f} s"
    if report.unchanged:
        line += f"; {counted(len(report.unchanged), 'was there already', 'were there already')}"
    line += (
        f"; {output.size(report.raw_nbytes)} → {output.size(report.nbytes)}, {bits:.2f} bits per value, "
        f"ratio {16 / bits:.1f} to 16 bits"
    )
    if report.calibration_nbytes:
        nbytes = output.size(report.calibration_nbytes)
        line += f"; beside them {nbytes} of calibration, for all documents of the model"
    return line


def _is_kept(report: Report) -> bool:
    """Whether the preset keeps its promise, and the setting what was asked for."""
    is_unmet = report.preset is not None and report.preset.is_unmet
    return not is_unmet and (report.setting is None or report.setting.met)


def _reached(report: Report) -> list[str]:
    """The setting that rate control chose, and how near that comes to the target; a preset whose promise is not kept."""
    from kvtool.compression.joint.choice import Choice

    if report.preset and report.preset.is_unmet:
        return [f"{report.variant}: {report.preset.describe_unmet()}"]
    if isinstance(report.setting, Choice):
        return [f"{report.variant}: {report.setting.describe()}"]
    if report.setting is None or report.target is None:
        return []
    setting = f"{report.setting.name}={report.setting.value:g}"
    measured = report.target.describe(report.setting.measured)
    if report.setting.met:
        return [f"{report.variant}: {setting}, {measured} on a few segments"]
    return [f"{report.variant}: {setting} comes nearest to the target, with {measured}"]
