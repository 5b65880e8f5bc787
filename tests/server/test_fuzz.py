"""The API asked everything that its own description allows, and what it does not: no answer may be a failure.

``KVTOOL_FUZZ_SECONDS`` is how long the API is asked, four times as long as each parser is fed; ``make fuzz`` sets 600.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi import checks

from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service

SECONDS = float(os.environ.get("KVTOOL_FUZZ_SECONDS", "16"))
CHECKS = (
    not_a_server_error,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
    checks.unsupported_method,
)


@pytest.fixture
def described(service: Service) -> Iterator[Any]:
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    shutdown_lifespans()


@pytest.mark.slow
def test_the_api(described: Any, service: Service) -> None:
    operations = [operation.ok() for operation in described.get_all_operations()]
    until = time.monotonic() + SECONDS
    asked = 0
    while time.monotonic() < until:
        for operation in operations:
            # Any bytes are bytes: only JSON can be of the wrong form.
            has_json = any(body.media_type == "application/json" for body in operation.body)
            for mode in [GenerationMode.POSITIVE, *[GenerationMode.NEGATIVE] * has_json]:
                asked += _asked(operation, mode, service, until)
    assert asked > 10 * len(operations)
    assert service.not_ready is None
    assert service.waiting == service.scheduler.running == 0


def _asked(operation: Any, mode: GenerationMode, service: Service, until: float) -> int:
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=30, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case: schemathesis.Case) -> None:  # type: ignore[type-arg]
        nonlocal asked
        if time.monotonic() > until:
            return
        # By themselves they would rarely name the model that is there, and never ask for few tokens.
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = service.model.name
            case.body["max_tokens"] = 3
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert isinstance(error["message"], str)
            assert set(error) == {"message", "type", "param", "code"}
        asked += 1

    ask()
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("parser", ["requests", "ranges", "tokens", "artifact", "signed", "container"])
def test_the_parsers(parser: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "fuzz" / "parsers.py"
    done = subprocess.run(
        # A process counts as its memory what the one that started it had.
        [
            sys.executable,
            str(script),
            parser,
            f"-max_total_time={max(1, int(SECONDS / 4))}",
            "-rss_limit_mb=0",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
