"""What all schemas share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A JSON object. It has the keys that its class has, and no others; docstrings of fields become descriptions."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Problem(Value):
    """What could not be done, or was done and may not be what is wanted."""

    subject: str | None
    """The file, document, field or option that it is about; null where the reason says it all."""
    reason: str
    remedy: str
    """What to do about it; empty where the reason leaves one choice."""
    message: str
    """All of it in one line."""


class ModelName(Value):
    """A model."""

    name: str
    fingerprint: str
    """Digest of all that decides its caches."""


class Estimate(Value):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Independent documents or contexts that it comes from."""
