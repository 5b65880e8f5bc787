"""Makes the environments of the peers, build/peers/NAME, from their requirements.

python -m benchmarks peers [--only NAME...]

Each takes about 1.5 GB, and a minute once packages are at hand. One that was made from the same requirements is left as
it is. The requirements are complete, so that nothing is chosen here: they are what pip made of the first few lines'
packages, with Python 3.11 on Linux. torch comes first and with what it depends on, because that differs from machine to
machine; everything else without, which LMCache needs (it would bring vLLM's stack).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.arguments import make_parser
from benchmarks.common.folders import BUILD
from benchmarks.peers.client import Peer

HERE = Path(__file__).parent
FOLDER = BUILD / "peers"
REQUIREMENTS = ".requirements.txt"


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names(), default=names())
    for name in parser.parse_args(argv).only:
        state = "made" if make(name) else "there already"
        with Peer(python(name), script(name)) as peer:
            print(f"{name}: {state}, {peer.name} {peer.version}, {', '.join(peer.methods)}", flush=True)


def names() -> list[str]:
    return sorted(path.name.removesuffix(REQUIREMENTS) for path in HERE.glob(f"*{REQUIREMENTS}"))


def script(name: str) -> Path:
    return HERE / f"{name}.py"


def python(name: str) -> Path:
    return FOLDER / name / "bin" / "python"


def make(name: str, folder: Path | None = None) -> bool:
    """Makes the environment that ``folder`` has requirements for. Returns whether there was anything to do."""
    requirements, made = (folder or HERE) / f"{name}{REQUIREMENTS}", FOLDER / name / "requirements.txt"
    if made.exists() and made.read_text() == requirements.read_text():
        return False
    _run([sys.executable, "-m", "venv", "--clear", str(FOLDER / name)])
    pip = [str(python(name)), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--constraint", str(requirements), "torch"])
    _run([*pip, "--no-deps", "--requirement", str(requirements)])
    made.write_text(requirements.read_text())
    return True


def _run(command: Sequence[str]) -> None:
    """``command``, whose output is shown only if it fails."""
    environment = {**os.environ, "DISABLE_CUDA": "1"}  # hqq compiles CUDA kernels that no cache uses
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)}: failed with exit code {done.returncode}")
