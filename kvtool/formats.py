"""Formats of kvtool's files. Their numbers and the package's version rise apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """``number`` is the newest that is read, and the one that is written. It rises if older readers must refuse the file.

    ``is_read`` is unset for what kvtool writes for other programs.
    """

    number: int
    file: str
    is_read: bool = True


FORMATS: Mapping[str, Format] = {
    "artifact": Format(1, "artifacts/ab/abcdef….safetensors"),
    "calibration": Format(1, "calibrations/abcdef….safetensors"),
    "manifest": Format(1, "manifests/docs/guide.md.json"),
    "store": Format(1, "kvtool-store.json"),
    "lock": Format(1, "kvtool.lock"),
    "chunk": Format(1, "chunks that LMCache stores by kvtool's serde"),
    "evaluation": Format(1, "kvtool eval --json", is_read=False),
    "break-even": Format(1, "kvtool bench --json", is_read=False),
    "recommendation": Format(1, "kvtool recommend --json", is_read=False),
}
