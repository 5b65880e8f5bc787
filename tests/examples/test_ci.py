"""The examples for CI systems: whatever they run of kvtool does what it should, in a project of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "examples/ci"
BUILD = ["kvtool build", "kvtool build --check"]


def _loaded(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def _commands(name: str) -> Iterator[str]:
    """The commands of an example, in their order."""
    if name == "Dockerfile":
        for line in (FOLDER / name).read_text().splitlines():
            if match := re.match(r"(RUN|CMD) (.*)", line):
                command = match[2]
                yield shlex.join(yaml.safe_load(command)) if command.startswith("[") else command
        return
    document = _loaded(name)
    if name == "github-actions.yml":
        yield from (step["run"] for step in document["jobs"]["build"]["steps"] if "run" in step)
    elif name == "gitlab-ci.yml":
        yield from (*document["caches"]["before_script"], *document["caches"]["script"])
    elif name == "pre-commit-config.yaml":
        yield from (hook["entry"] for repo in document["repos"] for hook in repo["hooks"])
    elif name == "kubernetes-job.yaml":
        for container in document["spec"]["template"]["spec"]["containers"]:
            yield shlex.join(container["command"])
    else:
        raise AssertionError(f"how are the commands of {name} found?")


NAMES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture
def project(corpus: Path) -> Path:
    (corpus / "kvtool.toml").write_text(
        '[build]\ndocuments = ["docs"]\n[[build.variants]]\nrecipe = "lossless"\n'
    )
    return corpus


@pytest.fixture
def environment(tiny_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Of a runner, which has kvtool on its path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "KVTOOL_MODEL": str(tiny_dir), "KVTOOL_DEVICE": "cpu"}


@pytest.mark.parametrize("name", NAMES)
def test_its_commands_run(name: str, project: Path, environment: dict[str, str]) -> None:
    commands = list(_commands(name))
    ours = [command for command in commands if command.startswith("kvtool ")]
    assert all(command.startswith("pip install ") for command in commands if command not in ours)
    if ours == ["kvtool build --check"]:
        done = subprocess.run(ours[0], shell=True, env=environment, capture_output=True)
        assert done.returncode == 4
        ours = [*BUILD, *ours]
    for command in ours:
        if "serve-cache" in command:
            _serve(command, project, environment)
            continue
        if "tenants" in command:
            shutil.copytree(project / "kv-store", project / "store/tenants/site")
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert (project / "kvtool.lock").exists()


def _serve(command: str, project: Path, environment: dict[str, str]) -> None:
    """Starts a server as an example does, at a free port, and asks it for its documents."""
    token = "0123456789abcdef0123"
    (project / "tokens").write_text(f"site {token}\n")
    replaced = {"8400": "0", "/run/secrets/tokens": str(project / "tokens")}
    words = [replaced.get(word, word) for word in shlex.split(command)]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        url = next(match[1] for line in server.stderr if (match := re.search(r":(\d+)/v1", line)))
        request = Request(
            f"http://127.0.0.1:{url}/v1/documents", headers={"Authorization": f"Bearer {token}"}
        )
        with urlopen(request) as answer:
            names = [entry["name"] for entry in json.load(answer)["data"]]
        server.terminate()
    assert names == ["docs/a.md", "docs/b.md"]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_installs_is_what_kvtool_has(name: str) -> None:
    extras = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for command in _commands(name):
        for part in re.findall(r"kvtool\[([\w,]+)\]", command):
            assert set(part.split(",")) <= set(extras)


def test_a_runner_gets_annotations_and_a_summary(project: Path, environment: dict[str, str]) -> None:
    summary = project / "summary.md"
    environment |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = subprocess.run(
        ["kvtool", "build", "--check"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "::error title=kvtool build::docs/a.md: is new\n" in done.stderr
    assert "### kvtool build --check: 3 things differ: run kvtool build\n" in summary.read_text()
    assert "| docs/a.md | is new |\n" in summary.read_text()
    summary.unlink()
    subprocess.run(["kvtool", "build"], env=environment, capture_output=True, check=True)
    assert re.search(r"### kvtool build: prefilled 2 documents; .* → kvtool.lock\n", summary.read_text())
