"""kvtool keygen, sign and verify --signed-by: from a new key to a check that fails."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

import kvtool
from kvtool.errors import FAILED, GATE, USAGE
from kvtool.store.local import LocalStore
from kvtool.store.trust.keys import key_text, trusted_keys
from tests.commands.conftest import Cli, error_of


def test_sign_and_verify(cli: Cli, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = json.loads(cli("keygen", "keys/ours", "--json").stdout)
    assert stat.S_IMODE(Path(made["private"]).stat().st_mode) == 0o600
    assert "is there already" in error_of(cli("keygen", "keys/ours", code=USAGE))
    other = json.loads(cli("keygen", "keys/theirs", "--json").stdout)
    assert "is not given" in error_of(cli("sign", code=USAGE))
    assert "would sign 3 documents" in cli("sign", "--key", made["private"], "--dry-run").stderr
    assert not store["c.txt"].signatures
    assert f"signed 1 document with key {made['id']}" in cli("sign", "c.txt", "--key", made["private"]).stderr
    unsigned = cli("verify", "--signed-by", made["public"], code=GATE).stderr
    assert "docs/a.md: its variant raw is signed by nobody" in unsigned
    assert "1 is intact" not in unsigned
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", Path(made["private"]).read_text())
    assert "signed 2 documents" in cli("sign").stderr
    cli("verify", "--signed-by", made["public"])
    cli("verify", "--signed-by", other["public"], "--signed-by", made["public"])
    wrong = cli("verify", "c.txt", "--signed-by", other["public"], code=GATE).stderr
    assert f"its variant raw is signed by {made['id']}; trusted: {other['id']}" in wrong


def test_a_store_that_requires_signatures(
    cli: Cli, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = json.loads(cli("keygen", "ours", "--json").stdout)
    cli("sign", "--key", made["private"], "--require")
    # Who writes to it signs with the key of the environment.
    nobody = cli("compress", "c.txt", "--recipe", "nf4", code=USAGE)
    assert "the key to sign with: is not given" in error_of(nobody)
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", made["private"])
    cli("compress", "c.txt", "--recipe", "nf4")
    cli("verify", "--signed-by", made["public"])
    Path("new.txt").write_text("A new document, some words long.")
    cli("prefill", "new.txt")
    assert "signed 0 documents" in cli("sign").stderr
    other = json.loads(cli("keygen", "theirs", "--json").stdout)
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", other["private"])
    refused = error_of(cli("compress", "c.txt", "--recipe", "kivi", code=FAILED))
    assert f"signed by {made['id']}, {other['id']}" in refused or f"signed by {other['id']}" in refused
    assert store["c.txt"].variants == ["raw", "nf4"]
    # Who keeps the store may always remove what is not trusted.
    store.require([])
    kvtool.compress(store, "c.txt", recipe="kivi")
    LocalStore(store.root).require(store_key(made["public"]))
    assert "its variant kivi is signed by nobody" in error_of(cli("show", "c.txt", code=FAILED))
    cli("rm", "c.txt")
    cli("gc")
    cli("verify")


def store_key(public: str) -> list[str]:
    return [key_text(key) for key in trusted_keys([Path(public)]).values()]
