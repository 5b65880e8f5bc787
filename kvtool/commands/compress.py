"""kvtool compress: raw artifacts → compressed variants."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Optional

import typer

from kvtool.commands import common


def run(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Documents (default: all).", metavar="[NAME…]")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="How to compress; kvtool recipes lists them.")
    ] = "klt",
    bits: Annotated[
        Optional[float],
        typer.Option("--bits", help="Bits for each value: of codes, or in all for recipes with a dial."),
    ] = None,
    ratio: Annotated[
        Optional[float], typer.Option("--ratio", help="To 16 bits at least, all bytes counted.", metavar="R")
    ] = None,
    max_kl: Annotated[
        Optional[float],
        typer.Option("--max-kl", help="KL to the raw cache at most, in nats per token.", metavar="X"),
    ] = None,
    preset: Annotated[
        Optional[str], typer.Option("--preset", help="near-lossless, balanced or small.")
    ] = None,
    keys: Annotated[
        Optional[str],
        typer.Option("--keys", help="Keys otherwise: BITS, RECIPE or RECIPE:BITS.", metavar="SIDE"),
    ] = None,
    values: Annotated[
        Optional[str],
        typer.Option("--values", help="Values otherwise: BITS, RECIPE or RECIPE:BITS.", metavar="SIDE"),
    ] = None,
    recent: Annotated[
        Optional[int], typer.Option("--recent", help="Last tokens kept in 16 bits.", metavar="N")
    ] = None,
    sinks: Annotated[
        Optional[int], typer.Option("--sinks", help="First tokens kept in 16 bits.", metavar="N")
    ] = None,
    options: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            help="Any parameter of the recipe; kvtool recipes RECIPE lists them.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    calibration: Annotated[
        Optional[str],
        typer.Option(
            "--calibration",
            help="For recipes that need one: one of the store's (default: the newest for the documents' model).",
            metavar="DIGEST",
        ),
    ] = None,
    name: Annotated[
        Optional[str], typer.Option("--name", help="The variant's name (default: the recipe's).")
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="What is compressed: raw, or expected, which prefill --neighbours made for blending.",
        ),
    ] = "raw",
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a variant that was made otherwise.")
    ] = False,
    dry_run: common.DryRunOption = False,
    as_json: common.JsonOption = False,
) -> int:
    """Compress the store's raw artifacts into a variant beside them.

    Some recipes measure attention: for these the model is run that the documents were prefilled with. klt, the default, is one
    of them, and learns that model first, once; kivi is quick and needs no model.
    """
    from kvtool.compression.compress import compress
    from kvtool.config import settings
    from kvtool.store.open import open_store

    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
    opened = open_store(chosen.store)
    given = {
        "bits": _whole(bits),
        "ratio": _whole(ratio),
        "max_kl": max_kl,
        "preset": preset,
        "recent": recent,
        "sinks": sinks,
        **_parsed(options or []),
    }
    parameters = {name: value for name, value in given.items() if value is not None}
    with _Bars() as bars:
        report = compress(
            opened,
            names or None,
            recipe=recipe,
            keys=keys,
            values=values,
            model=lambda: common.load_model(chosen),
            calibration=calibration,
            name=name,
            source=source,
            replace=replace,
            dry_run=dry_run,
            say=common.say,
            on_calibration=lambda p: common.calibrated(bars.show("calibrating"))(p),
            on_progress=lambda r: bars.show("compressing").update(
                r.segments_done, r.segments_total, "segments"
            ),
            **parameters,
        )
    if as_json:
        common.print_json(report.to_json())
    elif dry_run:
        for document in report.compressed:
            typer.echo(document)
        common.say(f"{report.variant}: would compress {len(report.compressed)} documents")
    elif report.n_elements:
        common.say(
            f"{report.variant}: compressed {len(report.compressed)} documents in {report.seconds:.1f} s"
            + (f"; {len(report.unchanged)} were there already" if report.unchanged else "")
            + f"; {common.size(report.raw_nbytes)} → {common.size(report.nbytes)}, {report.bits_per_value:.2f} bits per value, "
            f"ratio {16 / report.bits_per_value:.1f} to 16 bits"
            + (
                f"; beside them {common.size(report.calibration_nbytes)} of calibration, for all documents of the model"
                if report.calibration_nbytes
                else ""
            )
        )
    elif not report.problems:
        common.say(f"nothing to compress: {opened} is empty; run kvtool prefill first")
    if (fallback := report.fallback_segments) and not as_json:
        some = ", ".join(f"{ref.document} (segment {ref.segment})" for ref in fallback[:3])
        common.say(
            f"{report.variant}: {len(fallback)} segments are unlike the calibration's text and were coded whole, in "
            f"more bytes at the same step: {some}{', …' if len(fallback) > 3 else ''}; kvtool calibrate on the like "
            "would make them smaller"
        )
    if report.setting and report.target:
        found = f"{report.setting.name}={report.setting.value:g}"
        reached = report.target.describe(report.setting.measured)
        if not report.setting.met:
            common.say(f"{report.variant}: {found} comes nearest to what was asked for, with {reached}")
            return max(4, common.problems(report.problems, len(report.compressed) + len(report.unchanged)))
        common.say(f"{report.variant}: {found}, {reached} on a few segments")
    return common.problems(report.problems, len(report.compressed) + len(report.unchanged))


class _Bars:
    """One progress bar at a time, made when there is something to show."""

    def __init__(self) -> None:
        self.what, self.stack = "", ExitStack()

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def show(self, what: str) -> common.Bar:
        if what != self.what:
            self.stack.close()
            self.what, self.bar = what, self.stack.enter_context(common.Bar(what))
        return self.bar


def _whole(number: float | None) -> float | None:
    """What recipes count, they count in integers."""
    return int(number) if number is not None and number == int(number) else number


def _parsed(options: list[str]) -> dict[str, int | float | str]:
    from inspect import signature

    from kvtool.compression.compress import compress
    from kvtool.compression.pipeline_options import parameters_of
    from kvtool.errors import UsageError

    found = parameters_of(options, "--set", "--set group=64")
    for name in found:
        if name in signature(compress).parameters:
            raise UsageError(
                f"--set {name}={found[name]}", f"{name} is no parameter of a recipe", "kvtool compress --help"
            )
    return found
