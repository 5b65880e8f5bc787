"""Folders of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BUILD = ROOT / "build"
"""What benchmarks fetch, prefill and remember. ``make clean`` removes it."""
