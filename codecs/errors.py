"""Errors of codecs."""

from __future__ import annotations

from collections.abc import Iterable


class CodecError(ValueError):
    """A pipeline that cannot be planned, a tensor that cannot be encoded, or bytes that cannot be decoded.

    The message names the stage, the field, the value and what was expected.
    """


class NeedsError(CodecError):
    """A pipeline that wants inputs beyond keys and values, by name in ``needs``, which were not given."""

    def __init__(self, needs: Iterable[str]) -> None:
        self.needs = sorted(needs)
        super().__init__(f"pipeline: needs {', '.join(self.needs)}, which is not given")


class NeedsCalibration(CodecError):
    """A recipe that is built from a calibration of ``method``, which was not given."""

    def __init__(self, recipe: str, method: str) -> None:
        self.recipe, self.method = recipe, method
        super().__init__(f"recipe {recipe!r}: needs a calibration of method {method!r}, which is not given")


class MissingCalibration(CodecError):
    """A stage's configuration names, by ``digest``, a calibration that is missing."""

    def __init__(self, stage: str, digest: str) -> None:
        self.digest = digest
        super().__init__(
            f"{stage}: needs calibration {digest}, which is not here; get it from where the segment was encoded, or encode "
            "again with another"
        )


def unexpected(name: str, value: object, expected: str) -> CodecError:
    """The error for a value that is not what was expected; it is shown in 80 characters at most."""
    return CodecError(f"{name} is {str(value)[:80]}, expected {expected}")
