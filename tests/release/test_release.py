"""The workflow of a release: its commands are run up to publishing, in a copy of the repository after a release's commit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docsgen.release import release
from tests.release.wheels import BUILT_FROM, ROOT, copied, declared, link

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: needed for name, needed in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")
}
NEEDED = [*PROJECT["dependencies"], *(one for needed in EXTRAS.values() for one in needed)]
VERSION = "9.0.0"

pytestmark = pytest.mark.slow


def steps(job: str) -> dict[str, str]:
    """The commands of a job, by their step's name."""
    return {step["name"]: step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step}


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the copy, once the wheel is built and installed, and the SBOM is written. ``pip.log`` has pip's arguments."""
    tmp = tmp_path_factory.mktemp("release")
    root = copied(tmp / "repository", *BUILT_FROM, "CHANGELOG.md", "changelog", "constraints.txt")
    release(VERSION, "2026-01-02", root)
    for command in ("init --quiet", "add --all", "commit --quiet --message Release"):
        author = ["-c", "user.name=kvtool", "-c", "user.email=kvtool@example.org"]
        subprocess.run(["git", *author, *command.split()], cwd=root, check=True)
    pip = tmp / "bin/pip"
    pip.parent.mkdir()
    pip.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {root}/pip.log\n')
    pip.chmod(0o755)
    path = os.pathsep.join([str(pip.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "GITHUB_REF_NAME": f"v{VERSION}"}
    for name, commands in steps("build").items():
        if name == "Try the wheel":
            continue  # test_wheel.py does.
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        if name == "Install the wheel":
            (site,) = (root / "build/clean").glob("lib/python*/site-packages")
            link(declared(NEEDED).values(), site)
            zipfile.ZipFile(next((root / "dist").iterdir())).extractall(site)
    return root


def test_the_wheel_has_the_tags_version(released: Path) -> None:
    assert [path.name for path in (released / "dist").iterdir()] == [f"kvtool-{VERSION}-py3-none-any.whl"]


def test_the_wheel_is_installed_with_every_extra_of_users(released: Path) -> None:
    log = (released / "pip.log").read_text()
    (extras,) = re.findall(r"none-any\.whl\[([\w,]+)\]", log)
    assert set(extras.split(",")) == set(EXTRAS)
    assert log.count("--constraint\nconstraints.txt\n") == 2


def test_the_versions_that_a_release_is_tried_with_are_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    tools = steps("build")["Install tools"].partition("constraints.txt ")[2].split()
    assert {"build", "setuptools"} <= set(tools)
    assert {*map(name_of, NEEDED), *tools} <= pinned


def test_the_sbom_lists_what_the_wheel_needs(released: Path) -> None:
    # The command itself compares with CycloneDX's schema, and would have failed.
    assert " --validate " in steps("build")["Write the SBOM"]
    sbom: dict[str, Any] = json.loads((released / "sbom/kvtool.cdx.json").read_text())
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    root = sbom["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("kvtool", VERSION, "library")
    assert "Apache-2.0" in json.dumps(root["licenses"])
    versions = {canonicalize_name(one["name"]): one["version"] for one in sbom["components"]}
    installed = {name: one.version for name, one in declared(NEEDED).items()}
    # No tool, and nothing else of this environment.
    assert {name: versions[name] for name in versions if name != "kvtool"} == installed
    by_reference = {one["bom-ref"]: canonicalize_name(one["name"]) for one in sbom["components"]}
    (arrows,) = (one["dependsOn"] for one in sbom["dependencies"] if one["ref"] == root["bom-ref"])
    assert {by_reference[reference] for reference in arrows} >= {*map(name_of, PROJECT["dependencies"])}
    assert all("licenses" in one for one in sbom["components"] if one["name"] in ("torch", "numpy", "typer"))


def test_only_publishing_may_ask_for_signatures_and_runs_no_commands() -> None:
    jobs = WORKFLOW["jobs"]
    assert WORKFLOW["permissions"] == {}
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read"},
        "publish": {"attestations": "write", "id-token": "write"},
        "page": {"contents": "write"},
    }
    assert not steps("publish")
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(
        re.fullmatch(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", one) for one in used
    )
    signed = [step["with"] for step in jobs["publish"]["steps"] if step["uses"].startswith("actions/attest@")]
    assert [one.get("sbom-path") for one in signed] == [None, "sbom/kvtool.cdx.json"]
    assert {one["subject-path"] for one in signed} == {"dist/*.whl"}
