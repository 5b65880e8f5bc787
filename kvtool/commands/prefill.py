"""kvtool prefill: documents → raw artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from kvtool.commands import common


def run(
    paths: Annotated[list[str], typer.Argument(help="Files, folders or glob patterns.", metavar="PATH…")],
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
    system: Annotated[
        Optional[str], typer.Option("--system", help="A system prompt for the chat template's head.")
    ] = None,
    prefix_file: Annotated[
        Optional[Path],
        typer.Option("--prefix-file", help="A text to prefill every document under, instead of the head."),
    ] = None,
    no_prefix: Annotated[
        Optional[bool], typer.Option("--no-prefix", help="Prefill documents under nothing.")
    ] = None,
    include: Annotated[
        Optional[list[str]],
        typer.Option("--include", help="Only names that match, as in .gitignore; repeatable."),
    ] = None,
    exclude: Annotated[
        Optional[list[str]],
        typer.Option("--exclude", help="No names that match, as in .gitignore; repeatable."),
    ] = None,
    segment_tokens: Annotated[
        Optional[int],
        typer.Option(
            "--segment-tokens", help="Split longer documents (default: what the model's context leaves)."
        ),
    ] = None,
    step_tokens: Annotated[
        Optional[int],
        typer.Option("--step-tokens", help="Tokens of one pass over a long document (default: 1024)."),
    ] = None,
    pack_tokens: Annotated[
        Optional[int],
        typer.Option("--pack-tokens", help="Tokens of short documents in one pass (default: 512)."),
    ] = None,
    neighbours: Annotated[
        Optional[int],
        typer.Option(
            "--neighbours",
            help="Read each document behind so many others too, and keep the mean as variant expected: for blending "
            "(default: 0; 4 is a good number).",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what the store holds for another model or prefix.")
    ] = False,
    dry_run: common.DryRunOption = False,
    as_json: common.JsonOption = False,
) -> int:
    """Prefill documents with a model and store their KV caches.

    What is already there is skipped, by content. An interrupted run, started again, goes on where it stopped.
    """
    from kvtool.config import settings
    from kvtool.documents.read import read_text
    from kvtool.model.prefill_speed import remember
    from kvtool.prefilling.prefill import prefill
    from kvtool.store.open import open_store

    chosen = settings(
        store=store,
        model=model,
        device=device,
        dtype=dtype,
        load_in=load_in,
        adapter=adapter,
        system=system,
        prefix_file=prefix_file,
        no_prefix=no_prefix,
        include=include,
        exclude=exclude,
        segment_tokens=segment_tokens,
        step_tokens=step_tokens,
        pack_tokens=pack_tokens,
        neighbours=neighbours,
    )
    opened = open_store(chosen.store)
    loaded = common.load_model(chosen)
    with common.Bar("prefilling") as bar:
        report = prefill(
            paths,
            model=loaded,
            store=opened,
            system=chosen.system,
            prefix_text=read_text(chosen.prefix_file) if chosen.prefix_file else None,
            no_prefix=chosen.no_prefix,
            include=chosen.include,
            exclude=chosen.exclude,
            segment_tokens=chosen.segment_tokens,
            step_tokens=chosen.step_tokens,
            pack_tokens=chosen.pack_tokens,
            neighbours=chosen.neighbours,
            replace=replace,
            dry_run=dry_run,
            on_progress=lambda r: bar.update(r.tokens, r.tokens_total, "tokens"),
        )
    if report.model_tokens:
        remember(loaded.fingerprint, report.model_tokens, report.model_seconds)
    if as_json:
        common.print_json(
            {
                "store": str(chosen.store),
                "model": {"name": loaded.name, "fingerprint": loaded.fingerprint},
                "dry_run": dry_run,
                "prefilled": report.prefilled,
                "unchanged": report.unchanged,
                "averaged": report.averaged,
                "without_neighbours": report.without_neighbours,
                "problems": [str(error) for error in report.problems],
                "tokens": report.tokens,
                "seconds": round(report.seconds, 3),
            }
        )
    else:
        verb = "would prefill" if dry_run else "prefilled"
        if dry_run:
            for name in report.prefilled:
                typer.echo(name)
        common.say(
            f"{verb} {len(report.prefilled)} documents"
            + (
                f", {report.tokens:,} tokens in {report.seconds:.1f} s ({report.tokens / report.seconds:,.0f} a second)"
                if report.tokens
                else ""
            )
            + (f"; {len(report.unchanged)} were there already" if report.unchanged else "")
            + (f"; {len(report.averaged)} read behind others for blending" if report.averaged else "")
            + f" → {chosen.store}"
        )
        if report.without_neighbours:
            common.say(
                f"{', '.join(report.without_neighbours)}: no other documents to stand behind within the model's "
                "context, so nothing was made for blending; run it again when there are more"
            )
    return common.problems(report.problems, len(report.prefilled) + len(report.unchanged))
