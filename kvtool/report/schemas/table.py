"""Which command prints what."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from kvtool.report.schemas import asking, making, measured, stores

VALUES: Mapping[str, Any] = MappingProxyType(
    {
        "prefill": making.Prefill,
        "calibrate": making.Calibrate | making.CalibratePlan,
        "compress": making.Compress,
        "blend": making.Blend,
        "ask": asking.Answer | asking.AnswerList,
        "eval": measured.Evaluation,
        "recommend": measured.Recommendation,
        "bench": measured.BreakEven,
        "build": making.Build | making.BuildPlan | making.BuildCheck | making.NothingToBuild,
        "ls": list[stores.Listed],
        "show": stores.Show,
        "verify": stores.Verify,
        "rm": stores.Removed,
        "gc": stores.Collected,
        "pin": stores.Pinned,
        "keygen": stores.Key,
        "sign": stores.Signed,
        "encrypt": stores.Encrypted,
        "push": stores.Pushed,
        "pull": stores.Pulled,
        "recipes": list[asking.Recipe] | asking.Recipe,
        "connector vllm": stores.ServeLine,
        "doctor": asking.Doctor,
    }
)
"""By command. A command that gets ``--json`` gets a line here."""


def json_schema(command: str) -> dict[str, Any]:
    """The JSON Schema, draft 2020-12, of what ``command`` prints with ``--json``."""
    schema = TypeAdapter(VALUES[command]).json_schema()
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"kvtool {command} --json"}
    return {**about, **{name: value for name, value in schema.items() if name != "title"}}
