"""Makes other engines' environments and runs the connectors' tests in them: python -m tests.suites.engines [NAME…] [-- PYTEST…].

Says plainly what this machine cannot run. Ends with 1 where a test fails. Where all engines' tests ran and passed, their page is
written, docs/results/engines.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.connectors.shown import FILE
from tests.suites.engines import environments
from tests.suites.engines.page import page

PAGE = environments.ROOT / "docs/results/engines.md"


def main(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, options = arguments[:end], arguments[end + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "shown.jsonl"
        shown.touch()
        failed, skipped = _run(names, options, shown)
        if not (failed or skipped or names or options):
            PAGE.write_text(page(shown))
    print(f"engines: {', '.join(failed)} failed" if failed else "engines: passed", flush=True)
    return int(bool(failed))


def _run(names: list[str], options: list[str], shown: Path) -> tuple[list[str], bool]:
    """The engines whose tests failed, and whether this machine skipped some."""
    failed, skipped = [], False
    for name in names or environments.names():
        if name not in environments.names():
            raise SystemExit(f"no engine {name!r}, expected {', '.join(environments.names())}")
        folder = environments.make(name)
        if reason := environments.can_compute(name):
            print(f"{name}: {reason}; tests that compute with it are skipped", flush=True)
            skipped = True
        command = [str(folder / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider", "-rs", *options]
        environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", FILE: str(shown)}
        done = subprocess.run([*command, f"tests/connectors/{name}"], cwd=environments.ROOT, env=environment)
        if done.returncode:
            failed.append(name)
    return failed, skipped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
