"""kvtool doctor: what is installed, what works, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.commands import output
from kvtool.commands.options import AsJson, StoreFlags, with_settings
from kvtool.errors import DONE, GATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtool.config import Settings
    from kvtool.diagnosis.finding import Finding


@with_settings(StoreFlags)
def run(*, settings: Settings, as_json: AsJson = False) -> int:
    """Look at this installation: packages, machine, kernels and their speed, model and store, with a command for what is missing.

    Exits with 4 if anything is broken. Nothing is changed.
    """
    from kvtool.diagnosis.finding import Finding
    from kvtool.diagnosis.packages import INSTALL, packages

    found = list(packages())
    try:
        from kvtool.diagnosis.machine import machine
        from kvtool.diagnosis.project import project
    except ImportError as error:
        # Without torch, say, which the packages' line names.
        found.append(Finding("machine", "broken", f"cannot be looked at ({error})", INSTALL))
    else:
        found += [*machine(), *project(settings)]
    output.emit({"findings": [one.to_json() for one in found]}, render(found), as_json)
    return GATE if any(one.state == "broken" for one in found) else DONE


def render(found: Sequence[Finding]) -> output.Lines:
    width = max(len(one.subject) for one in found)
    return output.Lines([f"{one.subject:{width}}  {one}" for one in found])
