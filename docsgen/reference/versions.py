"""The package's version, and those of its files."""

from __future__ import annotations

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page
from kvtool.formats import FORMATS

INTRO = """The package and its files have versions apart. A new package mostly writes the same files as the one before.

## The package

`kvtool --version` prints it. It stands in `pyproject.toml`, and `kvtool.__version__` is the same. It follows
[Semantic Versioning](https://semver.org/spec/v2.0.0.html): what is public are the commands and their JSON, the names of
[`kvtool`](python.md), the HTTP API, the settings and the files. Until 1.0, a new 0.x may change any of these but the files, and
`CHANGELOG.md` says so.

## Files

Each file says its format's number. This kvtool writes these, and `kvtool doctor` prints those that are read back:"""

PROMISE = """The last three are written for other programs.

| a file | what kvtool does |
| --- | --- |
| of this number or a smaller one | reads it, for ever. The tests keep files that earlier versions have written |
| of a larger number | refuses it, and the error says "upgrade kvtool". Nothing is removed, by `kvtool verify --remove` neither |
| of this number, coded by a stage or a stage's version that is not known | refuses that artifact; others are read |
| an artifact of this number whose header has fields that are not known | reads it, and passes over them |
| a manifest or a calibration that has fields that are not known | refuses it as changed, so such a field raises the number |

A number rises only if an older kvtool must not read the file. The package's version does not rise with it by rule, but a release
that writes a larger number is at least a new 0.x, later a new major version. [Stages](stages.md) have versions of their own."""


def page() -> str:
    rows = [(name, code(one.file), one.number) for name, one in FORMATS.items()]
    return whole_page(
        "Versions",
        "kvtool/formats.py and docsgen/reference/versions.py",
        INTRO,
        table(("format", "file", "number"), rows),
        PROMISE,
    )
