"""Errors that a user can do something about: a subject, a reason, a remedy and an exit code.

The code that raises knows the facts and gives them as fields. Sentences are made at the edges: the command line prints
``str(error)``, the server and its log choose what they show. Nothing takes a sentence apart.
"""

from __future__ import annotations

DONE, FAILED, USAGE, PARTLY, GATE, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 usage · 3 done in part · 4 a check or gate failed · 130 interrupted."
)


class KvtoolError(Exception):
    """Anything a user can do something about.

    ``subject`` is the file, document, field or option that it is about, None where the reason says it all. ``reason`` names
    the value and what was expected, ``remedy`` what to do, "" where the reason leaves one choice.
    """

    exit_code = FAILED

    def __init__(self, subject: object, reason: object, remedy: str = "") -> None:
        # All three go to Exception, so that the error can be pickled: worker processes hand theirs back.
        super().__init__(subject, reason, remedy)
        self.subject, self.reason, self.remedy = subject, str(reason), remedy

    def __str__(self) -> str:
        text = self.reason if self.subject is None else f"{self.subject}: {self.reason}"
        return f"{text}; {self.remedy}" if self.remedy else text

    def to_json(self) -> dict[str, str | None]:
        subject = None if self.subject is None else str(self.subject)
        return {"subject": subject, "reason": self.reason, "remedy": self.remedy, "message": str(self)}


def described(error: Exception) -> str:
    """An error in one line of a log: one that is not kvtool's own with its kind."""
    return str(error) if isinstance(error, KvtoolError) else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """What a library says is wrong, without the advice after it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UsageError(KvtoolError):
    """The command line or a call's arguments do not make sense, whatever the files hold."""

    exit_code = USAGE


class DocumentError(KvtoolError):
    """One document cannot be read or split; the others go on."""


class ModelError(KvtoolError):
    """A model cannot be found, loaded or used."""


class ArtifactError(KvtoolError):
    """An artifact is not what it says it is: truncated, edited, of a newer format."""


class BrokenFile(ArtifactError):
    """A file's bytes are not those that were written."""


class MismatchError(KvtoolError):
    """A cache belongs to another model, tokenizer, prefix or RoPE setting; ``reason`` names the field."""


class StoreError(KvtoolError):
    """A store, or an entry of it, is missing, newer than this kvtool, or in the way."""
