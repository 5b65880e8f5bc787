"""A method of the comparison: its settings and what differs from the authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OWN = ", own documents"
"""End of a row's name that is calibrated as ``kvtool compress`` does by itself: on the store's own documents."""


@dataclass(frozen=True)
class Method:
    """Settings with a sentence each: ``authors`` are advised by the authors, and the sentence says where.

    ``kvtool`` are further settings, and the sentence says why. Settings are written as for ``kvtool eval --recipes``.
    ``differs`` says what differs from the authors' code; empty where the recipe's docstring does. ``peer`` is the script
    in ``benchmarks/peers`` that runs another tool.
    """

    authors: Mapping[str, str] = field(default_factory=dict)
    kvtool: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""
    peer: str = ""
