"""kvtool show: everything about one document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import common

if TYPE_CHECKING:
    from kvtool.store.base import Store


def run(
    name: Annotated[str, typer.Argument(help="The document's name.")],
    store: common.StoreOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Show a document's model, prefix, segments, variants and their calibrations, to the byte."""
    from kvtool.config import settings
    from kvtool.store.open import open_store

    opened = open_store(settings(store=store).store)
    document = opened[name]
    segments: list[dict[str, Any]] = []
    calibrations: dict[str, dict[str, Any]] = {}
    for index, segment in enumerate(document.segments):
        variants = {}
        for label, variant in segment.variants.items():
            artifact = opened.open_artifact(variant)
            for digest in artifact.meta["calibrations"]:
                used = calibrations.setdefault(digest, _calibration(opened, digest))["variants"]
                if label not in used:
                    used.append(label)
            elements = artifact.contents.geometry.n_elements
            variants[label] = {
                "digest": variant.artifact,
                "file": str(artifact.path),
                "bytes": artifact.nbytes,
                "bits_per_value": round(8 * artifact.nbytes / elements, 4),
                "recipe": dict(variant.recipe) or None,
            }
        segments.append(
            {
                "segment": index,
                "tokens": segment.n_tokens,
                "characters": [segment.start, segment.end],
                "identity": segment.identity,
                "variants": variants,
            }
        )
    if as_json:
        common.print_json(
            {
                "name": name,
                "model": dict(document.model),
                "prefix": dict(document.prefix),
                "segments": segments,
                "calibrations": list(calibrations.values()),
            }
        )
        return
    typer.echo(f"{name}: {document.n_tokens:,} tokens")
    typer.echo(f"  model   {document.model['name']}  {document.model['fingerprint']}")
    typer.echo(f"  prefix  {document.prefix['tokens']} tokens, {document.prefix['origin']['kind']}")
    for entry in segments:
        typer.echo(
            f"  segment {entry['segment']}: {entry['tokens']:,} tokens, characters "
            f"{entry['characters'][0]} to {entry['characters'][1]}"
        )
        width = max(map(len, entry["variants"]))
        for label, variant in entry["variants"].items():
            typer.echo(
                f"    {label:{width}} {variant['bytes']:>13,} bytes  {variant['bits_per_value']:6.2f} bits per value  "
                f"{variant['file']}"
            )
    for entry in calibrations.values():
        typer.echo(
            f"  calibration {entry['method']}, {entry['bytes']:,} bytes, shared by all that is compressed with it (here "
            f"{', '.join(entry['variants'])})  {entry['file']}"
        )


def _calibration(store: Store, digest: str) -> dict[str, Any]:
    found = store.calibrations[digest]
    return {
        "digest": digest,
        "method": found.method,
        "file": str(store.calibrations.path_of(digest)),
        "bytes": found.nbytes,
        "variants": [],
    }
