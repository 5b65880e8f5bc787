"""Makes other engines' environments and runs the connectors' tests in them: python -m tests.suites.engines [NAME…] [-- PYTEST…].

Says plainly what this machine cannot run. Ends with 1 where a test fails.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.suites.engines import environments


def main(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, options = arguments[:end], arguments[end + 1 :]
    failed = []
    for name in names or environments.names():
        if name not in environments.names():
            raise SystemExit(f"no engine {name!r}, expected {', '.join(environments.names())}")
        folder = environments.make(name)
        if reason := environments.can_compute(name):
            print(f"{name}: {reason}; tests that compute with it are skipped", flush=True)
        command = [str(folder / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider", "-rs", *options]
        environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, f"tests/connectors/{name}"], cwd=environments.ROOT, env=environment)
        if done.returncode:
            failed.append(name)
    print(f"engines: {', '.join(failed)} failed" if failed else "engines: passed", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
