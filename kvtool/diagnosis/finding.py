"""What a look at the installation finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """``subject`` is as ``detail`` says. ``remedy`` is a command or advice.

    What is missing can be done without, what is broken stops work.
    """

    subject: str
    state: State
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = "" if self.state == "ok" else f"{self.state}: "
        return f"{mark}{self.detail}{f'; {self.remedy}' if self.remedy else ''}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
