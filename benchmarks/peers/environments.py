"""Makes the environments of the peers, build/peers/NAME, from their requirements.

python -m benchmarks peers [--only NAME...]

Each takes about 1.5 GB, and a minute once packages are at hand; LMCache without what it depends on, which would bring
vLLM's stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.arguments import make_parser
from benchmarks.common.environments import make_environment
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
    return make_environment(FOLDER / name, (folder or HERE) / f"{name}{REQUIREMENTS}")
