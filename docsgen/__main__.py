"""Write the pages that are made from the code, or check that they are what the code says."""

from __future__ import annotations

import argparse
import difflib
import sys
from datetime import UTC, datetime
from pathlib import Path

from docsgen.pages import PAGES
from docsgen.release import release

ROOT = Path(__file__).parents[1]
COMMAND = "python -m docsgen"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    parser.add_argument(
        "--release",
        metavar="VERSION",
        help="first make what is unreleased that version: changelog, pyproject.toml",
    )
    options = parser.parse_args(arguments)
    check = options.check
    if options.release:
        release(options.release, datetime.now(UTC).date().isoformat())
    stale = 0
    for path, page in PAGES.items():
        file, text = ROOT / path, page()
        before = file.read_text() if file.is_file() else ""
        if before == text:
            continue
        if check:
            stale += 1
            print(
                f"{path} is not what the code says; run {COMMAND}\n{difference(before, text)}",
                file=sys.stderr,
            )
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            print(f"wrote {path}")
    return 1 if stale else 0


def difference(before: str, after: str, most: int = 12) -> str:
    """The first lines that differ."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "on disk", "from the code", n=0, lineterm=""
    )
    return "\n".join(list(lines)[:most])


if __name__ == "__main__":
    sys.exit(main())
