"""kvtool demo"""

from __future__ import annotations


def run() -> None:
    """The main job, end to end, on the embedded model and kvtool's own documents."""
