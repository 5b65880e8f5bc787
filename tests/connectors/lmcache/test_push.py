"""kvtool push lmcache://…: what is pushed and what is refused, over a stand-in for the SDK, which test_running_server.py has."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import kvtool
from kvtool.artifact.store_key import new_store_key
from kvtool.cli import app
from kvtool.connectors.lmcache.push import push_to_lmcache
from kvtool.connectors.lmcache.server_state import Address, ServerState
from kvtool.errors import StoreError
from kvtool.store.encrypt import encrypt
from kvtool.store.local import LocalStore
from tests.connectors.lmcache.conftest import FakeServer

CHUNK = 16


class FakeSession:
    """Whole chunks by their tokens, as LMCache keeps them; ``room`` of them at most."""

    kept: ClassVar[dict[tuple[str, str, tuple[int, ...]], Tensor]] = {}
    room: ClassVar[int] = 1000

    def __init__(self, address: Address, model: str) -> None:
        self.address, self.model = address, model

    def held(self, token_ids: Sequence[int]) -> int:
        found = 0
        while found + CHUNK <= len(token_ids) and self._key(token_ids[: found + CHUNK]) in self.kept:
            found += CHUNK
        return found

    def store(self, kv: Tensor, token_ids: Sequence[int]) -> None:
        assert kv.shape[2] == len(token_ids)
        for start in range(0, kv.shape[2], CHUNK):
            if len(self.kept) < self.room:
                self.kept.setdefault(self._key(token_ids[: start + CHUNK]), kv[:, :, start : start + CHUNK])

    def close(self) -> None:
        pass

    def _key(self, token_ids: Sequence[int]) -> tuple[str, str, tuple[int, ...]]:
        return self.model, self.address.salt, tuple(token_ids)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    monkeypatch.setattr("kvtool.connectors.lmcache.push.Session", FakeSession)
    monkeypatch.setattr("kvtool.connectors.lmcache.push.sdk", lambda address: None)
    monkeypatch.setattr(FakeSession, "kept", {})
    return FakeSession


def test_every_document_is_pushed_once(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.serve("tiny")
    report = push_to_lmcache(store, server.address)
    assert (sorted(report.copied), report.problems) == (sorted(store), [])
    assert report.nbytes == report.nbytes_total == sum(kv.nbytes for kv in sessions.kept.values())
    for name in store:
        parts = store.parts(name)
        ids = torch.cat([part.token_ids for part in parts]).tolist()
        keys = torch.cat([part.layer(1).keys for part in parts], 1)
        for start in range(0, len(ids) - CHUNK + 1, CHUNK):
            chunk = sessions.kept["tiny", "", tuple(ids[: start + CHUNK])]
            # Head 1's third channel, as LMCache lays heads out.
            assert torch.equal(chunk[0, 1, :, 8 + 2], keys[1, start : start + CHUNK, 2])
    again = push_to_lmcache(store, server.address)
    assert (again.copied, sorted(again.unchanged), again.nbytes) == ([], sorted(store), 0)
    salted = push_to_lmcache(store, f"{server.address}&salt=tenant", ["c.txt"])
    assert salted.copied == ["c.txt"]


def test_a_dry_run_sends_nothing(store: LocalStore, server: FakeServer, sessions: type[FakeSession]) -> None:
    server.serve("tiny")
    report = push_to_lmcache(store, server.address, dry_run=True)
    assert sorted(report.copied) == sorted(store)
    assert report.nbytes_total > 0
    assert not sessions.kept


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "torch.bfloat16"}, "is of float32, not the bfloat16 of tiny"),
        ({"num_layers": 3}, "has 2 layers, not the 3"),
        ({"engine_kv_concrete_shape": "2 x [64, 2, 4, 16, 8]"}, "keys of 2 x 8 in layer 0, not the 4 x 8"),
        ({"engine_kv_concrete_shape": "2 x [64, 2, 2, 16, 16]"}, "keys of 2 x 8 in layer 0, not the 2 x 16"),
        ({"is_mla": True}, "takes no caches of tiny: its caches are latents"),
        ({"groups": 2}, "its layers are of 2 kinds"),
        ({"world_size": 2}, "it runs on 2 ranks"),
        (
            {
                "engine_kv_shape": "NL x [NB, NH, BS, CS]",
                "engine_kv_concrete_shape": "Unknown (NL_X_NB_NH_BS_CS)",
            },
            "its blocks are NL x [NB, NH, BS, CS], and which channels are keys",
        ),
    ],
)
def test_what_the_server_cannot_hold_is_refused_by_its_field(
    changes: dict[str, Any], named: str, store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.serve("tiny", **changes)
    report = push_to_lmcache(store, server.address, ["c.txt"])
    assert named in str(report.problems[0])
    assert not sessions.kept


def test_a_model_of_another_name_is_refused_unless_it_is_said_to_be_the_same(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    assert "serves no model yet" in str(push_to_lmcache(store, server.address, ["c.txt"]).problems[0])
    server.serve("org/served")
    problem = push_to_lmcache(store, server.address, ["c.txt"]).problems[0]
    assert "no model called 'tiny', only org/served" in str(problem)
    assert push_to_lmcache(store, f"{server.address}&model=org/served", ["c.txt"]).copied == ["c.txt"]


def test_weights_of_a_served_directory_are_compared(
    store: LocalStore,
    server: FakeServer,
    sessions: type[FakeSession],
    tiny_dir: Path,
    tmp_path: Path,
    make_model: Any,
) -> None:
    other = make_model(tmp_path / "other", seed=1)
    for directory, copied in ((other, []), (tiny_dir, ["c.txt"])):
        server.serve(str(directory))
        report = push_to_lmcache(store, f"{server.address}&model={directory}", ["c.txt"])
        assert report.copied == copied
    (problem,) = push_to_lmcache(store, f"{server.address}&model={other}", ["c.txt"]).problems
    assert "was made by another model: weights is" in str(problem)


def test_weights_are_compared_for_every_name(
    store: LocalStore,
    server: FakeServer,
    sessions: type[FakeSession],
    tmp_path: Path,
    make_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The same model's documents, of which one calls it by the name of a directory that holds another by now.
    other = str(make_model(tmp_path / "other", seed=1))
    entry = LocalStore.__getitem__

    def named(own: LocalStore, name: str) -> Any:
        document = entry(own, name)
        model = {**document.model, "name": other if name == "docs/a.md" else "tiny"}
        return replace(document, model=model)

    monkeypatch.setattr(LocalStore, "__getitem__", named)
    for name in ("tiny", other):
        server.serve(name)
    report = push_to_lmcache(store, server.address, ["c.txt", "docs/a.md"])
    assert report.copied == ["c.txt"]
    assert "docs/a.md: was made by another model: weights is" in str(report.problems[0])


@pytest.mark.parametrize("changed", ["prefix", "segment"])
def test_artifacts_of_another_model_than_the_manifest_says_are_refused(
    changed: str,
    store: LocalStore,
    server: FakeServer,
    sessions: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.serve("tiny")
    prefix, open_artifact = store["c.txt"].prefix_artifact, LocalStore.open_artifact
    assert prefix is not None

    def opened(own: LocalStore, variant: Any) -> Any:
        artifact = open_artifact(own, variant)
        if (variant.artifact == prefix.artifact) is not (changed == "prefix"):
            return artifact
        model = {**artifact.meta["model"], "fingerprint": "0" * 64}
        return replace(artifact, meta={**artifact.meta, "model": model})

    monkeypatch.setattr(LocalStore, "open_artifact", opened)
    report = push_to_lmcache(store, server.address, ["c.txt"])
    assert "has artifacts of another model than its manifest says" in str(report.problems[0])
    assert not sessions.kept


@pytest.mark.parametrize(
    "others",
    [
        {"dtype": "torch.bfloat16"},
        {"engine_kv_concrete_shape": "2 x [64, 2, 4, 16, 8]"},
        {"is_mla": True},
        {"world_size": 2},
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_engines_of_one_name_must_have_one_layout(
    others: dict[str, Any],
    is_first: bool,
    store: LocalStore,
    server: FakeServer,
    sessions: type[FakeSession],
) -> None:
    for changes in (others, {}) if is_first else ({}, others):
        server.serve("tiny", **changes)
    report = push_to_lmcache(store, server.address, ["c.txt"])
    assert "takes no caches of tiny" in str(report.problems[0])
    assert not sessions.kept


def test_engines_of_one_name_and_layout_share_what_is_pushed(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.serve("tiny")
    server.serve("tiny", engine_kv_concrete_shape="2 x [8, 2, 2, 16, 8]")
    assert push_to_lmcache(store, server.address, ["c.txt"]).copied == ["c.txt"]


def test_what_no_prefill_gives_is_refused(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession], tiny: kvtool.Model
) -> None:
    server.serve("tiny")
    kvtool.compress(store, "c.txt", recipe="streaming-llm", model=tiny)
    assert not kvtool.prefill(["docs", "c.txt"], model=tiny, store=store, neighbours=1).problems
    for dry_run in (True, False):
        pruned = push_to_lmcache(store, server.address, ["c.txt"], variant="streaming-llm", dry_run=dry_run)
        assert "has lost tokens" in str(pruned.problems[0])
        assert pruned.copied == []
    missing = push_to_lmcache(store, server.address, ["c.txt"], variant="none").problems[0]
    assert "has no variant 'none', only averaged, raw" in str(missing)
    averaged = push_to_lmcache(store, server.address, ["c.txt"], variant="averaged").problems[0]
    assert "is not what a prefill of its tokens gives" in str(averaged)
    assert not sessions.kept


def test_a_compressed_variant_is_pushed_decoded(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession], tiny: kvtool.Model
) -> None:
    server.serve("tiny")
    kvtool.compress(store, "c.txt", recipe="kivi", model=tiny)
    assert push_to_lmcache(store, server.address, ["c.txt"], variant="kivi").copied == ["c.txt"]
    (first, *_) = (kv for (_, _, ids), kv in sessions.kept.items() if len(ids) == CHUNK)
    parts = store.parts("c.txt", "kivi")
    keys = torch.cat([part.layer(0).keys for part in parts], 1)[:, :CHUNK]
    assert torch.equal(first[0, 0], keys.transpose(0, 1).flatten(1))


def test_a_server_that_keeps_too_little_is_a_problem(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "room", 1)
    server.serve("tiny")
    report = push_to_lmcache(store, server.address, ["docs/b.md"])
    assert "holds 16 of its" in str(report.problems[0])


def test_a_document_shorter_than_a_chunk_is_named(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.config["mp"]["chunk_size"] = 256
    server.serve("tiny")
    report = push_to_lmcache(store, server.address, ["c.txt"])
    assert "is shorter than one of LMCache's chunks, 256 tokens" in str(report.problems[0])


def test_a_broken_artifact_is_not_pushed(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.serve("tiny")
    path = store.locate_artifact(store["c.txt"].segments[0].variants["raw"].artifact)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    report = push_to_lmcache(store, server.address)
    assert "digest differs" in str(report.problems[0])
    assert sorted(report.copied) == ["docs/a.md", "docs/b.md"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"supported_transfer_mode": "lmcache_driven"}, "--supported-transfer-mode auto"),
        ({"shm_name": ""}, "--shm-name NAME: without shared memory LMCache would be sent pickles"),
        ({"chunk_size": "many"}, "answers otherwise than LMCache 0.5.6 does"),
    ],
)
def test_a_server_that_takes_no_caches_is_refused(
    config: dict[str, Any], named: str, server: FakeServer
) -> None:
    server.config["mp"] |= config
    with pytest.raises(StoreError, match=named):
        ServerState.read(Address.parse(server.address))


@pytest.mark.parametrize("answer", [[], {}, {"mp": None}, "text"])
def test_a_server_of_another_kind_is_refused(answer: Any, server: FakeServer) -> None:
    server.config = answer
    with pytest.raises(StoreError, match="is it an LMCache server"):
        ServerState.read(Address.parse(server.address))


def test_nothing_listens() -> None:
    with pytest.raises(StoreError, match="does not answer"):
        ServerState.read(Address("127.0.0.1", 1, 1))


@pytest.mark.skipif(importlib.util.find_spec("lmcache") is not None, reason="LMCache is installed")
def test_without_lmcache_the_command_says_what_to_install(store: LocalStore, server: FakeServer) -> None:
    server.serve("tiny")
    result = CliRunner().invoke(app, ["push", server.address])
    assert result.exit_code == 1
    assert "pip install lmcache==0.5.6" in result.stderr


def test_the_command_says_what_lmcaches_key_leaves_out(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.serve("tiny")
    result = CliRunner().invoke(app, ["push", server.address, "c.txt", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pushed"] == ["c.txt"]
    assert "Its key leaves out the weights' revision, quantization, RoPE, dtype and adapter" in result.stderr
    assert "whole chunks of 16 tokens" in result.stderr
    refused = CliRunner().invoke(app, ["push", server.address, "--replace"])
    assert refused.exit_code == 2
    assert "LMCache replaces nothing" in refused.stderr


def test_the_command_does_not_print_the_salt(
    store: LocalStore, server: FakeServer, sessions: type[FakeSession]
) -> None:
    server.serve("tiny")
    for options in ([], ["--json"], ["--dry-run"], ["--json", "--dry-run"], ["--variant", "none"]):
        result = CliRunner().invoke(app, ["push", f"{server.address}&salt=s3cret", "c.txt", *options])
        assert result.exit_code == (1 if "none" in options else 0), result.output
        assert "s3cret" not in result.stdout + result.stderr + repr(result.exception)
    assert {salt for _, salt, _ in sessions.kept} == {"s3cret"}
    assert "s3cret" not in repr(Address.parse(f"{server.address}&salt=s3cret"))


def test_an_encrypted_store_is_not_decrypted_unasked(
    store: LocalStore,
    server: FakeServer,
    sessions: type[FakeSession],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.serve("tiny")
    key = new_store_key()
    (tmp_path / "ours.key").write_text(key.to_text())
    monkeypatch.setenv("KVTOOL_ENCRYPTION_KEY", str(tmp_path / "ours.key"))
    encrypt(store, key)
    store = LocalStore(store.root)
    with pytest.raises(StoreError, match="--decrypt"):
        push_to_lmcache(store, server.address)
    assert sorted(push_to_lmcache(store, server.address, decrypt=True).copied) == sorted(store)
