"""The page about encodings: how many made texts, and how many of chardet's test files, are read right or warned of."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from docsgen.markdown import table
from tests.suites.encodings import (
    MISREAD,
    REFUSED,
    RIGHT,
    UNKNOWABLE,
    WARNED,
    WRONG,
    Case,
    made,
    text_encodings,
    verdict,
)
from tests.suites.languages import LANGUAGES

CHARDET = "chardet==5.2.0"
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/suites"
LANGUAGE = re.compile(r"^((?:iso-8859|windows)-\d+)-[a-z]+$")
"""A folder of chardet's that is named after a language, too."""

Counts = Mapping[str, Counter[str]]

INTRO = """# Encodings tried

`make encodings` writes this page. A text must be read right, or with a warning that says what was guessed and how to set
another encoding, or be refused. It must never be wrong without a word. *Right* is also what browsers show, which take GB 2312 for
GB 18030 and Latin-1 for Windows-1252."""

MADE = """## Made texts

{languages} languages, each in every one of Python's {encodings} encodings that has its characters. Undeclared Hebrew in the
EBCDIC of code page 424 is left out: its bytes are those of letters in ASCII, so it is read as such without a word."""

TAKEN = """## chardet's test files

Those of {chardet}, whose encoding is the name of their folder."""


def run() -> tuple[Counts, Counts]:
    return counted(made()), counted(chardets())


def counted(cases: Iterable[Case]) -> Counts:
    counts: Counts = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as directory:
        for case in cases:
            state = verdict(case, Path(directory))
            if state == WRONG and (case.encoding, case.group) in UNKNOWABLE:
                continue
            counts[case.group][state] += 1
            if state == WRONG:
                print(f"{state}: {case.encoding}, {case.group}: {case.expected[:60]!r}", file=sys.stderr)
    return counts


def page(results: tuple[Counts, Counts]) -> str:
    made_counts, taken = results
    blocks = [
        INTRO,
        MADE.format(languages=len(LANGUAGES), encodings=len(text_encodings())),
        _table("declared by", made_counts),
        TAKEN.format(chardet=CHARDET.replace("==", " ")),
        _table("folder", taken),
    ]
    return "\n\n".join(blocks) + "\n"


def passes(results: tuple[Counts, Counts]) -> bool:
    return not any(counter[WRONG] for counts in results for counter in counts.values())


def _table(heading: str, counts: Counts) -> str:
    states: Sequence[str] = (RIGHT, WARNED, MISREAD, REFUSED, WRONG)
    rows = [(group, *(counter[state] for state in states)) for group, counter in counts.items()]
    total = ("all", *(sum(counter[state] for counter in counts.values()) for state in states))
    return table((heading, *states), [*rows, total])


def chardets() -> Iterator[Case]:
    """chardet's test files, from its source distribution; those in an encoding that Python does not have are left out."""
    for folder in sorted(path for path in _fetched().iterdir() if path.is_dir()):
        encoding = LANGUAGE.sub(r"\1", folder.name.lower())
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            try:
                expected = data.decode(encoding, "replace").removeprefix("\ufeff")
            except LookupError:
                continue
            expected = expected.replace("\r\n", "\n").replace("\r", "\n")
            yield Case(encoding, folder.name, data, expected, path.suffix)


def _fetched() -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = CHARDET.replace("==", "-")
    if not (FOLDER / name).is_dir():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*download, "--dest", FOLDER, CHARDET], check=True)
        with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    return FOLDER / name / "tests"
