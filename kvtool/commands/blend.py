"""kvtool blend: blend documents ahead of time, and store the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_documents, complete_variants
from kvtool.commands.options import AsJson, DryRun, ModelFlags, given, load_model, with_settings
from kvtool.commands.repeats import Repeatable
from kvtool.counts import counted
from kvtool.errors import KvtoolError, UsageError

if TYPE_CHECKING:
    from kvtool.blending.save import SavedBlend
    from kvtool.config import Settings


@with_settings(ModelFlags)
def run(
    doc: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME[@VARIANT]…",
            help="Blend these documents of the store, in this order.",
            autocompletion=complete_documents,
        ),
    ],
    save: Annotated[str, typer.Option(metavar="NAME", help="Store the blend as the document of this name.")],
    variant: Annotated[
        str,
        typer.Option(
            help="Load this variant: raw, or a compressed one by its name.", autocompletion=complete_variants
        ),
    ] = "raw",
    recompute: Annotated[
        float | None,
        typer.Option(help="Recompute this share of the documents' tokens, 0 to 1 (default: 0.15)."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Choose the recomputed tokens by this policy; kvtool ask --policies lists them."),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Put this text between documents (default: an empty line).")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a timeline of the work to this file, for Perfetto or chrome://tracing."),
    ] = None,
    *,
    settings: Settings,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what the store holds of that name, whatever it is.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Blend documents that are asked about together, before anyone asks, and store the result as a document.

    It is loaded at once, as any other document is. What is there already is skipped, and a blend whose documents have changed
    since is made again.
    """
    inputs = _inputs(settings, doc, save)
    options_given = [variant, recompute, policy, separator]
    command = Repeatable(
        "blend", settings, inputs, documents=doc, save=save, options=options_given, replace=replace
    )
    if not dry_run and trace is None and command.replay(as_json):
        return

    from kvtool.blending.blend import BlendOptions
    from kvtool.blending.layout import chosen_document
    from kvtool.blending.save import save_blend
    from kvtool.store.open import open_store
    from kvtool.system.trace import Trace

    options = BlendOptions(**given(recompute=recompute, policy=policy))
    if recompute is not None and options.recompute != recompute:
        reason = f"policy {options.policy!r} always has {options.recompute:g}"
        raise UsageError(f"--recompute {recompute:g}", reason, "leave one of the two out")
    store = open_store(settings.store, existing=True)
    documents = [chosen_document(store, name) for name in doc]
    timeline = Trace()
    saved = save_blend(
        save,
        documents,
        load_model(settings),
        store,
        variant=variant,
        options=options,
        replace=replace,
        dry_run=dry_run,
        trace=timeline,
        **given(separator=separator),
    )
    if trace is not None:
        timeline.write(trace)
    output.emit(saved.to_json(), render(saved), as_json)
    if not dry_run and (after := _inputs(settings, doc, save)):
        again = saved.repeated()
        command.remember(after, {save: after["entries"][save]}, again.to_json(), render(again))


def _inputs(settings: Settings, docs: Sequence[str], save: str) -> dict[str, Any] | None:
    """The model's files, and what the store holds of ``docs`` and ``save``, as JSON.

    None where any cannot be read, and for a blend of blends, which goes by documents that are not named.
    """
    from kvtool.model.locate import model_state
    from kvtool.store.catalog.local import LocalCatalog

    try:
        catalog = LocalCatalog(settings.store)
        known = (name if name in catalog else name.rpartition("@")[0] for name in [*docs, save])
        held = {name: catalog[name] for name in known if name in catalog}
        if any(one.is_blend for name, one in held.items() if name != save):
            return None
        return {
            "model": model_state(settings.model, settings.adapter),
            "entries": {name: catalog.state(one, one.every_variant) for name, one in held.items()},
        }
    except (KvtoolError, OSError):
        return None


def render(saved: SavedBlend) -> output.Lines:
    documents = counted(len(saved.record.documents), "document")
    what = f"{saved.name}: {documents}, {counted(saved.tokens, 'token')}"
    if saved.is_unchanged:
        return output.Lines(notes=[f"{what}, was there already"])
    since = f"; {', '.join(saved.outdated)} had changed since the last time" if saved.outdated else ""
    if saved.dry_run:
        return output.Lines([saved.name], [f"would blend {what}{since}"])
    how = f"{saved.recomputed_tokens} of them recomputed in {saved.seconds:.1f} s"
    return output.Lines(notes=[f"blended {what}, {how}, {output.size(saved.nbytes)} → {saved.store}{since}"])
