"""kvtool ls: what a store holds."""

from __future__ import annotations

import typer

from kvtool.commands import common


def run(store: common.StoreOption = None, as_json: common.JsonOption = False) -> int:
    """List the documents of a store, with tokens, variants and bytes."""
    from kvtool.config import settings
    from kvtool.errors import KvtoolError
    from kvtool.store.open import open_store

    opened = open_store(settings(store=store).store)
    rows, broken = [], []
    for name in opened:
        try:
            document = opened[name]
            rows.append(
                {
                    "name": name,
                    "segments": len(document.segments),
                    "tokens": document.n_tokens,
                    "model": document.model["name"],
                    "variants": {variant: document.nbytes(variant) for variant in document.variants},
                }
            )
        except KvtoolError as error:
            broken.append(error)
    if as_json:
        common.print_json(rows)
    elif not rows and not broken:
        common.say(f"{opened}: is empty; run kvtool prefill first")
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            sizes = "  ".join(f"{variant} {common.size(n)}" for variant, n in row["variants"].items())
            segments = f" in {row['segments']} segments" if row["segments"] > 1 else ""
            typer.echo(f"{row['name']:{width}}  {row['tokens']:>7,} tokens{segments}  {sizes}")
    return common.problems(broken, len(rows))
