"""What a user did or has, as an error: one message, one exit code.

A message names the file or field, the value, what was expected, and what to do. The command line prints it as
one line; the Python API raises it.
"""

from __future__ import annotations

DONE, FAILED, USAGE, PARTLY, GATE, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 usage · 3 done in part · 4 a check or gate failed · 130 interrupted."
)


class KvtoolError(Exception):
    """Anything a user can do something about."""

    exit_code = FAILED


class UsageError(KvtoolError):
    """The command line or a call's arguments do not make sense, whatever the files hold."""

    exit_code = USAGE


class DocumentError(KvtoolError):
    """One document cannot be read or split; the others go on."""


class ModelError(KvtoolError):
    """A model cannot be found, loaded or used."""


class ArtifactError(KvtoolError):
    """An artifact is not what it says it is: truncated, edited, of a newer format."""


class MismatchError(KvtoolError):
    """A cache belongs to another model, tokenizer, prefix or RoPE setting; the message names the field."""


class StoreError(KvtoolError):
    """A store, or an entry of it, is missing, newer than this kvtool, or in the way."""


class CheckFailed(KvtoolError):
    """A check that was asked for did not pass."""

    exit_code = GATE
