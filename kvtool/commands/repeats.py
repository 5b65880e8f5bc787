"""Repetitions of a command that left nothing to do: answered from what it remembers, without torch or a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtool.commands import output
from kvtool.errors import DocumentError, KvtoolError

if TYPE_CHECKING:
    from kvtool.config import Settings

Inputs = Mapping[str, Any]


class Repeatable:
    """A command with its arguments, and the ``inputs`` that decide its outcome; None where they cannot be read."""

    def __init__(self, verb: str, settings: Settings, inputs: Inputs | None, **arguments: Any) -> None:
        store = os.path.realpath(settings.store)
        common = {"command": verb, "directory": str(Path.cwd()), "at": store}
        self.command = {**settings.model_dump(mode="json"), **arguments, **common}
        self.inputs = inputs

    def replay(self, as_json: bool) -> bool:
        """Prints what a repetition prints, if the command is known to have nothing to do. Returns whether it is."""
        from kvtool.system.run_memory import recall

        outcome = self.inputs and recall(self.command, self.inputs)
        if not outcome:
            return False
        output.emit(outcome["value"], output.Lines(**outcome["lines"]), as_json)
        output.print_warnings(
            DocumentError(w["subject"], w["reason"], w["remedy"]) for w in outcome["warnings"]
        )
        return True

    def remember(
        self,
        inputs: Inputs,
        entries: Mapping[str, str],
        value: object,
        lines: output.Lines,
        warnings: Iterable[KvtoolError] = (),
    ) -> None:
        """Remembers that there is nothing left to do, and what a repetition prints.

        ``inputs`` are those after the run. It is remembered only if the run's own ``entries`` are still in the store and
        nothing else has changed meanwhile.
        """
        from kvtool.system.run_memory import remember

        if self.inputs is None:
            return
        held = {name: state for name, state in inputs["entries"].items() if state}
        is_ours = entries.items() <= held.items() and {**self.inputs, "entries": None} == {
            **inputs,
            "entries": None,
        }
        if is_ours:
            outcome = {
                "value": value,
                "lines": {
                    "data": list(lines.data),
                    "notes": list(lines.notes),
                    "failures": list(lines.failures),
                },
                "warnings": [warning.to_json() for warning in warnings],
            }
            remember(self.command, inputs, outcome)
