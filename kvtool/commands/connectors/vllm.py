"""kvtool connector vllm: print the line that starts vLLM over a store."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_variants
from kvtool.commands.options import AsJson, StoreFlags, load_model, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings


class ServedFlags(StoreFlags):
    """For a command about a model that an engine serves."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Serve this model: a directory, a .gguf file, whose converted copy is served, or a hub id, "
            "owner/name@revision (default: embedded)."
        ),
    ]


@with_settings(ServedFlags)
def run(
    variant: Annotated[
        str | None,
        typer.Option(
            help="Load this variant (default: raw, or else the largest).", autocompletion=complete_variants
        ),
    ] = None,
    min_tokens: Annotated[
        int, typer.Option(min=1, help="Load a cache if it saves so many tokens from being prefilled.")
    ] = 64,
    max_load_seconds: Annotated[
        float, typer.Option(min=0.001, help="Prefill what is not loaded after so long.")
    ] = 30.0,
    threads: Annotated[int, typer.Option(min=1, help="Read and decode with so many threads.")] = 2,
    as_json: AsJson = False,
    *,
    settings: Settings,
) -> None:
    """Print the line that starts vLLM over a store, and say which documents it can load.

    The model's weights are hashed and compared with the store's, and the hashes are remembered for vLLM's start. vLLM computes in
    the dtype of the store's documents.
    """
    from kvtool.connectors.vllm.serve_line import ServeLine, loadable
    from kvtool.connectors.vllm.settings import Settings as ConnectorSettings
    from kvtool.store.layout import address, scheme
    from kvtool.store.open import open_store

    store = open_store(settings.store, existing=True)
    model = load_model(settings)
    found = loadable(store, model, variant)
    dtype = found.best(model.name, store)
    place = address(settings.store) if scheme(settings.store) else str(settings.store.absolute())
    chosen = ConnectorSettings(place, variant, min_tokens, max_load_seconds, threads)
    line = ServeLine.of(model, dtype, chosen)
    notes = [f"{counted(found.dtypes[dtype], 'document')} of {store}, in {dtype}, can be loaded"]
    others = {**found.others, **{f"dtype is {d}": n for d, n in found.dtypes.items() if d != dtype}}
    notes += [f"{counted(count, 'document')} cannot: {reason}" for reason, count in others.items()]
    value = {
        "command": line.words,
        "kv_transfer_config": line.transfer_config,
        "model": model.name,
        "dtype": dtype,
        "documents": found.dtypes[dtype],
        "others": others,
    }
    output.emit(value, output.Lines([shlex.join(line.words)], notes=notes), as_json)
