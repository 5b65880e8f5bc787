"""kvtool verify: is every byte what was written?"""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from kvtool.commands import common


def run(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Documents (default: all).", metavar="[NAME…]")
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Remove broken artifacts, so that prefill or compress makes them again."
        ),
    ] = False,
    store: common.StoreOption = None,
    as_json: common.JsonOption = False,
) -> int:
    """Read every artifact and calibration and check every digest.

    Ends with exit code 4 if anything is not what was written, or names a calibration that is missing.
    """
    from kvtool.artifact.read import BrokenArtifact
    from kvtool.config import settings
    from kvtool.errors import DONE, GATE, KvtoolError
    from kvtool.store.calibrations import BrokenCalibration
    from kvtool.store.open import open_store

    opened = open_store(settings(store=store).store)
    sound: set[str] = set()
    broken: dict[str, str] = {}
    removed: list[str] = []
    for name in names or opened:
        try:
            variants = opened[name].artifacts
        except KvtoolError as error:
            if names:
                raise
            broken[name] = str(error)
            continue
        for variant in variants:
            if variant.artifact in sound:
                continue
            try:
                opened.open_artifact(variant).verify()
                sound.add(variant.artifact)
            except KvtoolError as error:
                broken.setdefault(variant.artifact, f"{name}: {error}")
                # What a newer kvtool wrote, or what cannot be read now, is not ours to remove.
                if remove and isinstance(error, BrokenArtifact) and variant.artifact not in removed:
                    opened.discard(variant)
                    removed.append(variant.artifact)
    for digest in () if names else opened.calibrations:
        try:
            _ = opened.calibrations[digest]
            sound.add(digest)
        except KvtoolError as error:
            broken[digest] = str(error)
            if remove and isinstance(error, BrokenCalibration):
                opened.calibrations.discard(digest)
                removed.append(digest)
    if as_json:
        common.print_json({"sound": len(sound), "broken": broken, "removed": removed})
    else:
        for line in broken.values():
            common.say(f"error: {line}")
        common.say(
            f"{len(sound)} artifacts are sound, {len(broken)} are not{f', {len(removed)} removed' if removed else ''}"
        )
    return GATE if broken else DONE
