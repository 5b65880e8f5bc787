"""kvtool show: describe one document in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_documents
from kvtool.commands.options import AsJson, StoreFlags, with_settings
from kvtool.counts import counted

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.store.base import Store


@with_settings(StoreFlags)
def run(
    name: Annotated[str, typer.Argument(help="Show this document.", autocompletion=complete_documents)],
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """Show a document's model, prefix, segments, variants and their calibrations, to the byte."""
    from kvtool.store.open import open_store

    description = describe(open_store(settings.store, existing=True), name)
    output.emit(description, render(description), as_json)


def describe(store: Store, name: str) -> dict[str, Any]:
    """The document as JSON: ``segments`` with their ``variants``, and the ``calibrations`` that these share."""
    from kvtool.blending.record import record_of

    document, record = store[name], record_of(store, name)
    segments: list[dict[str, Any]] = []
    calibrations: dict[str, dict[str, Any]] = {}
    for index, segment in enumerate(document.segments):
        variants = {}
        for label, variant in segment.variants.items():
            artifact = store.open_artifact(variant)
            for digest in artifact.meta["calibrations"]:
                users = calibrations.setdefault(digest, _calibration(store, digest))["variants"]
                if label not in users:
                    users.append(label)
            geometry = artifact.contents.geometry
            variants[label] = {
                "digest": variant.artifact,
                "file": str(artifact.path),
                "bytes": artifact.nbytes,
                "bits_per_value": round(8 * artifact.nbytes / geometry.n_elements, 4),
                "resident_bytes": geometry.cache_nbytes,
                "recipe": dict(variant.recipe) or None,
            }
        place = {"segment": index, "tokens": segment.n_tokens, "characters": [segment.start, segment.end]}
        segments.append({**place, "identity": segment.identity, "variants": variants})
    return {
        "name": name,
        "model": dict(document.model),
        "prefix": dict(document.prefix),
        "blend": record and {**record.to_json(), "outdated": record.outdated(store)},
        "segments": segments,
        "calibrations": list(calibrations.values()),
    }


def _calibration(store: Store, digest: str) -> dict[str, Any]:
    calibration = store.calibrations[digest]
    return {
        "digest": digest,
        "method": calibration.method,
        "file": str(store.calibrations.path_of(digest)),
        "bytes": calibration.nbytes,
        "variants": [],
    }


def render(description: dict[str, Any]) -> output.Lines:
    model, prefix = description["model"], description["prefix"]
    n_tokens = sum(segment["tokens"] for segment in description["segments"])
    lines = [
        f"{description['name']}: {counted(n_tokens, 'token')}",
        f"  model   {model['name']}  {model['fingerprint']}",
        f"  prefix  {counted(prefix['tokens'], 'token')}, {prefix['origin']['kind']}",
    ]
    lines += _blend_lines(description["blend"])
    for segment in description["segments"]:
        start, end = segment["characters"]
        tokens = f"{counted(segment['tokens'], 'token')}, characters {start} to {end}"
        lines.append(f"  segment {segment['segment']}: {tokens}")
        width = max(map(len, segment["variants"]))
        lines += [
            f"    {label:{width}} {variant['bytes']:>13,} bytes  {variant['bits_per_value']:6.2f} bits per value  "
            f"{variant['resident_bytes']:>13,} bytes in memory  {variant['file']}"
            for label, variant in segment["variants"].items()
        ]
    lines += [
        f"  calibration {calibration['method']}, {calibration['bytes']:,} bytes, shared by all that is compressed "
        f"with it (here {', '.join(calibration['variants'])})  {calibration['file']}"
        for calibration in description["calibrations"]
    ]
    return output.Lines(lines)


def _blend_lines(blend: dict[str, Any] | None) -> list[str]:
    if blend is None:
        return []
    documents = ", ".join(part["document"] for part in blend["parts"] if "document" in part)
    lines = [f"  blend   {documents}  policy {blend['policy']}, {blend['recompute']:g} recomputed"]
    return lines + [
        f"  out of date: {name} {reason}; kvtool blend makes it again"
        for name, reason in blend["outdated"].items()
    ]
