"""Arguments of a benchmark, and the command that says how it was run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence


def make_parser(documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring, line by line."""
    return argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command(name: str, arguments: Sequence[str]) -> str:
    """What to type to run the benchmark ``name`` again."""
    return shlex.join(["python", "-m", "benchmarks", name, *arguments])
