"""Packages: what kvtool needs, its extras, and engines, as the metadata of the installation says."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from kvtool.diagnosis.finding import Finding
from kvtool.formats import FORMATS

HIDDEN = ("dev", "docs")
"""Extras for those who work on kvtool."""

INSTALL = "pip install kvtool"

ENGINES = ("vllm", "lmcache", "sglang")


def packages() -> Iterator[Finding]:
    """A finding for kvtool itself, for what is always needed, for each extra, and for each engine that is there."""
    formats = ", ".join(f"{name} {one.number}" for name, one in FORMATS.items() if one.is_read)
    yield Finding("kvtool", "ok", f"{version('kvtool')}, formats: {formats}")
    needed, extras = _requirements()
    yield _group("packages", needed, INSTALL, essential=True)
    for extra, requirements in extras.items():
        yield _group(f"extra {extra}", requirements, f"pip install 'kvtool[{extra}]'", essential=False)
    for engine in ENGINES:
        if (found := _version(engine)) is not None:
            yield Finding(f"engine {engine}", "ok", found)


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    needed: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, requires("kvtool") or ()):
        names = [
            part.split("==")[1].strip(" \"'")
            for part in str(requirement.marker or "").split("and")
            if "extra" in part
        ]
        if not names:
            needed.append(requirement)
        # An extra that is made of others has kvtool itself as a requirement.
        elif names[0] not in HIDDEN and requirement.name != "kvtool":
            extras.setdefault(names[0], []).append(requirement)
    return needed, extras


def _group(subject: str, requirements: list[Requirement], remedy: str, *, essential: bool) -> Finding:
    lacking, wrong = [], []
    for requirement in requirements:
        found = _version(requirement.name)
        if found is None:
            lacking.append(requirement.name)
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, expected {requirement.specifier}")
    if wrong:
        return Finding(subject, "broken", ", ".join(wrong), remedy)
    if lacking:
        return Finding(subject, "broken" if essential else "missing", f"no {', '.join(lacking)}", remedy)
    names = ", ".join(f"{one.name} {_version(one.name)}" for one in requirements)
    return Finding(subject, "ok", f"{len(requirements)} are there" if essential else names)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
