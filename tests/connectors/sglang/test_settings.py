"""Settings of the backend."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.connectors.sglang.settings import Settings
from kvtool.errors import UsageError


def test_what_is_not_set_has_its_default() -> None:
    settings = Settings.of({"backend_name": "kvtool", "kvtool": {"store": "kv", "memory_gib": 0.5}})
    assert (settings.store, settings.variant, settings.memory, settings.threads) == ("kv", None, 2**29, 2)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        (None, "names no store"),
        ({}, "names no store"),
        ({"store": 3}, "store 3"),
        ({"store": "kv", "threads": 0}, "threads 0"),
        ({"store": "kv", "threads": 1.5}, "threads 1.5"),
        ({"store": "kv", "memory_gib": True}, "memory_gib True"),
        ({"store": "kv", "nonsense": 1}, "nonsense"),
    ],
)
def test_what_makes_no_sense_is_named(own: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Settings.of({"kvtool": own})
