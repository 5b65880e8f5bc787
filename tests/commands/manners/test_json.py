"""What commands print with --json is what kvtool schema says."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from typer.testing import CliRunner

from kvtool.cli import app
from kvtool.errors import GATE, USAGE
from kvtool.report.schemas.table import VALUES, json_schema
from tests.commands.manners.conftest import COMMANDS, EXAMPLES, NOT_RUN, Run, command_of

WITH_JSON = {name for name, one in COMMANDS.items() if any("--json" in p.opts for p in one.params)}
EXAMPLES_WITH_JSON = [name for name in EXAMPLES if command_of(name) in WITH_JSON]


def conforming(name: str, printed: str) -> Any:
    """The JSON that was printed, if it is as the command's schema says."""
    value = json.loads(printed)
    validator = jsonschema_rs.validator_for(json_schema(command_of(name)))
    assert [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(value)] == []
    return value


def test_every_command_has_an_example_and_every_json_a_schema() -> None:
    assert {command_of(name) for name in EXAMPLES} | set(NOT_RUN) == set(COMMANDS)
    assert set(VALUES) == WITH_JSON


@pytest.mark.parametrize("name", EXAMPLES_WITH_JSON)
def test_json_is_as_its_schema_says(run: Run, name: str) -> None:
    assert conforming(name, run(name, "--json").stdout) is not None


@pytest.mark.parametrize(
    "name", ["prefill", "calibrate", "compress", "build", "rm", "gc", "sign", "push", "pull"]
)
def test_json_of_a_dry_run_is_too(run: Run, name: str) -> None:
    conforming(name, run(name, "--json", "--dry-run").stdout)


def test_json_of_what_is_wrong_is_too(run: Run) -> None:
    """Problems, warnings, broken artifacts and repetitions."""
    for artifact in (run.place / "kv-store/artifacts").rglob("*.safetensors"):
        artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    assert conforming("verify", run("verify", "--json", code=GATE).stdout)["broken"]
    (run.place / "new.txt").write_bytes(b"%PDF-broken")
    (run.place / "new.txt").rename(run.place / "new.pdf")
    printed = CliRunner().invoke(app, ["prefill", "docs/b.md", "new.pdf", "--json"]).stdout
    assert conforming("prefill", printed)["problems"]


def test_json_of_a_preset_and_of_a_repetition(run: Run) -> None:
    compress = ["compress", "docs/a.md", "--recipe", "klt", "--json"]
    first = conforming("compress", CliRunner().invoke(app, compress).stdout)
    assert first["preset"]["name"] == "balanced"
    assert conforming("compress", CliRunner().invoke(app, compress).stdout)["unchanged"] == ["docs/a.md"]
    assert len(conforming("recipes", run("recipes klt", "--json").stdout)["measured"]) == 1
    build = conforming("build", run("build", "--json").stdout)
    assert build["gate"][0]["passed"]
    assert conforming("build", run("build", "--json").stdout)["differences"] == []


def test_a_schema_is_one_and_refuses_what_it_does_not_name() -> None:
    for name in VALUES:
        jsonschema_rs.meta.validate(json_schema(name))
    validator = jsonschema_rs.validator_for(json_schema("gc"))
    good = {"dry_run": True, "documents": {}, "trimmed": [], "removed": [], "bytes": 0, "writers": []}
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "more": 1})
    assert not validator.is_valid({**good, "dry_run": "yes"})
    assert not validator.is_valid({key: good[key] for key in good if key != "bytes"})


def test_the_command_prints_schemas() -> None:
    def printed(*words: str) -> Any:
        return json.loads(CliRunner().invoke(app, ["schema", *words]).stdout)

    assert printed() == {name: json_schema(name) for name in VALUES}
    assert printed("ls") == json_schema("ls")
    wrong = CliRunner().invoke(app, ["schema", "lss"])
    assert (wrong.exit_code, wrong.stdout) == (USAGE, "")
    assert wrong.stderr == "error: lss is no command with --json; did you mean ls?\n"
