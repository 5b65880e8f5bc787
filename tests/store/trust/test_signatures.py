"""Signed documents: what a signature covers, and who refuses what is not signed."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import kvtool
from kvtool.errors import StoreError, UsageError
from kvtool.measurement.scope import Scope
from kvtool.store.backends.memory import MemoryBackend
from kvtool.store.layout import Marker
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document, Variant
from kvtool.store.remote import RemoteStore
from kvtool.store.room.make_room import make_room
from kvtool.store.room.rules import Rules
from kvtool.store.transfer.push import push
from kvtool.store.transfer.to_files import ToFiles
from kvtool.store.transfer.transfer import Report, transfer
from kvtool.store.trust.keys import key_text, signing_key, trusted_keys
from kvtool.store.trust.sign_documents import sign_documents
from kvtool.store.trust.signatures import NotSigned, refuse_unsigned, sign
from tests.store.conftest import bytes_of
from tests.store.trust.conftest import Pair

SCOPE = Scope(documents=1, metrics=("times",), repeats=1)
THREE = ["c.txt", "docs/a.md", "docs/b.md"]


@pytest.fixture
def signed(store: LocalStore, ours: Pair) -> LocalStore:
    """All documents, raw and nf4, signed by us."""
    kvtool.compress(store, recipe="nf4")
    assert sign_documents(store, signing_key(ours.private)) == (THREE, [])
    return store


def test_a_signed_document_is_read_as_before(signed: LocalStore, ours: Pair, tiny: kvtool.Model) -> None:
    document = signed["c.txt"]
    assert list(document.signatures) == ["nf4", "raw"]
    refuse_unsigned(document, trusted_keys([ours.public]))
    signed.load("c.txt", tiny)
    assert Document.from_bytes(document.to_bytes(), "x") == document
    before = bytes_of(signed.root)
    assert sign_documents(signed, signing_key(ours.private)) == ([], THREE)
    assert bytes_of(signed.root) == before


def test_a_signature_is_of_all_that_the_manifest_says(signed: LocalStore, ours: Pair) -> None:
    document, trusted = signed["c.txt"], trusted_keys([ours.public])
    (segment,) = document.segments
    other = Variant("0" * 64, segment.variants["raw"].nbytes)
    changed = [
        replace(document, name="d.txt"),
        replace(document, text_digest="0" * 64),
        replace(document, model={**document.model, "fingerprint": "x"}),
        replace(document, prefix_artifact=None),
        replace(document, segments=(replace(segment, start=1),)),
        replace(document, segments=(replace(segment, variants={**segment.variants, "raw": other}),)),
        replace(document, signatures={}),
        replace(document, signatures={"raw": document.signatures["nf4"], "nf4": document.signatures["raw"]}),
        replace(document, signatures={**document.signatures, "raw": dict.fromkeys(trusted, "zz")}),
    ]
    for one in changed:
        with pytest.raises(NotSigned):
            refuse_unsigned(one, trusted)


def test_a_signature_by_nobody_trusted(signed: LocalStore, ours: Pair, theirs: Pair) -> None:
    (mine,), trusted = trusted_keys([ours.public]), trusted_keys([theirs.public])
    with pytest.raises(
        NotSigned, match=rf"c\.txt: its variant nf4 is signed by {mine}; trusted: {next(iter(trusted))}"
    ):
        refuse_unsigned(signed["c.txt"], trusted)
    both = sign(signed["c.txt"], signing_key(theirs.private))
    for keys in (trusted, trusted_keys([ours.public]), trusted_keys([ours.public, theirs.public])):
        refuse_unsigned(both, keys)


def test_variants_come_and_go_without_the_signatures_of_the_others(signed: LocalStore, ours: Pair) -> None:
    trusted = trusted_keys([ours.public])
    refuse_unsigned(signed["c.txt"].with_variants(["nf4"]), trusted)
    kvtool.compress(signed, recipe="kivi")
    with pytest.raises(NotSigned, match="its variant kivi is signed by nobody"):
        refuse_unsigned(signed["c.txt"], trusted)
    refuse_unsigned(signed["c.txt"].with_variants(["nf4", "raw"]), trusted)
    assert "kivi" not in signed["c.txt"].signatures


def test_what_the_environment_requires_is_refused_everywhere(
    signed: LocalStore, ours: Pair, theirs: Pair, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    files = bytes_of(signed.root)
    monkeypatch.setenv("KVTOOL_SIGNED_BY", str(ours.public))
    assert LocalStore(signed.root)["c.txt"] == signed["c.txt"]
    assert RemoteStore("", MemoryBackend("a", dict(files)))["c.txt"] == signed["c.txt"]
    monkeypatch.setenv("KVTOOL_SIGNED_BY", theirs.public.read_text())
    for store in (LocalStore(signed.root), RemoteStore("", MemoryBackend("b", dict(files)))):
        with pytest.raises(NotSigned):
            store["c.txt"]
        assert store.readable() == []
    # Nothing was kept of what was refused.
    assert not list(cache.rglob("*.json.json"))


def test_a_store_can_require_it(signed: LocalStore, ours: Pair, theirs: Pair, tmp_path: Path) -> None:
    public = signing_key(ours.private).public_key()
    signed.require([key_text(public)])
    assert LocalStore(signed.root).trust.rules == ((key_text(public),),)
    assert pickle.loads(pickle.dumps(LocalStore(signed.root)))["c.txt"] == signed["c.txt"]
    with pytest.raises(UsageError, match="KVTOOL_SIGNING_KEY"):
        kvtool.compress(signed, recipe="kivi")
    with pytest.raises(NotSigned, match="kivi"):
        signed.accept(signed["c.txt"].with_variant(0, "kivi", signed["c.txt"].segments[0].variants["nf4"]))
    assert signed["c.txt"].variants == ["raw", "nf4"]
    assert push(LocalStore(signed.root), tmp_path / "pushed").copied == THREE
    other = LocalStore(shutil.copytree(signed.root, tmp_path / "other"))
    other.require([])
    assert not other.trust.rules


def test_a_push_takes_signatures_along(signed: LocalStore, ours: Pair, tmp_path: Path) -> None:
    trusted = trusted_keys([ours.public])
    push(signed, tmp_path / "part", variant="nf4")
    part = LocalStore(tmp_path / "part")
    for name in THREE:
        refuse_unsigned(part[name], trusted)
    assert push(signed, tmp_path / "part").copied == THREE
    assert dict(LocalStore(tmp_path / "part")) == dict(signed)


def test_what_was_pushed_before_it_was_signed_gets_the_signatures(
    store: LocalStore, ours: Pair, tmp_path: Path
) -> None:
    push(store, tmp_path / "other")
    sign_documents(store, signing_key(ours.private))
    assert push(store, tmp_path / "other").copied == THREE
    assert push(store, tmp_path / "other").unchanged == THREE
    refuse_unsigned(LocalStore(tmp_path / "other")["c.txt"], trusted_keys([ours.public]))


def test_a_manifest_whose_signatures_are_none(signed: LocalStore) -> None:
    for signatures in (b'{"raw":7}', b'{"raw":{"a":7}}', b"[]x", b'"x"'):
        data = signed["c.txt"].to_bytes()
        start = data.index(b'"signatures":') + len(b'"signatures":')
        end = data.index(b"}}", start) + 2
        with pytest.raises(StoreError, match="manifest"):
            Document.from_bytes(data[:start] + signatures + data[end:], "manifest")


def test_nobody_builds_on_what_others_left(
    signed: LocalStore, ours: Pair, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact's identity does not say what its values are: one that nobody has signed must not be signed by accident."""
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", str(ours.private))
    signed.require([key_text(signing_key(ours.private).public_key())])
    raw = signed["c.txt"].segments[0].variants["raw"].artifact
    stranger = replace(signed["c.txt"], name="theirs.txt", signatures={})
    signed.remove("c.txt")
    signed.write_manifest(stranger)
    assert signed.holds(stranger.segments[0].variants["raw"])
    report = kvtool.prefill("c.txt", model=tiny, store=signed)
    assert report.model_tokens > 0
    assert raw not in {variant.artifact for variant in LocalStore(signed.root).known().values()} or (
        signed["c.txt"].segments[0].variants["raw"].artifact == raw
    )
    without = replace(stranger, segments=(replace(stranger.segments[0], variants={}),))
    signed.write_manifest(without)
    with pytest.raises(NotSigned, match="has no variant, and so no signature"):
        signed["theirs.txt"]


def test_who_requires_signatures_can_write_with_a_key(
    store: LocalStore, ours: Pair, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_documents(store, signing_key(ours.private))
    monkeypatch.setenv("KVTOOL_SIGNED_BY", str(ours.public))
    required = LocalStore(store.root)
    with pytest.raises(UsageError, match="KVTOOL_SIGNING_KEY"):
        kvtool.prefill("c.txt", model=tiny, store=required)
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", str(ours.private))
    Path("more.txt").write_text("Some words. " * 20)
    kvtool.prefill("more.txt", model=tiny, store=required)
    kvtool.compress(required, recipe="nf4")
    assert LocalStore(store.root)["more.txt"].variants == ["raw", "nf4"]
    # Measuring makes a store of its own, of which nobody asks for signatures.
    kvtool.evaluate(required, ["more.txt"], model=tiny, recipes=["nf4"], scope=SCOPE)


def test_readers_follow_what_a_store_begins_to_require(store: LocalStore, ours: Pair) -> None:
    reader = LocalStore(store.root)
    assert reader["c.txt"]
    store.require([key_text(signing_key(ours.private).public_key())])
    with pytest.raises(NotSigned):
        reader["c.txt"]


def test_room_is_made_whoever_has_signed(
    store: LocalStore, ours: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtool.compress(store, recipe="nf4")
    monkeypatch.setenv("KVTOOL_SIGNED_BY", str(ours.public))
    room = make_room(LocalStore(store.root), Rules(variants=frozenset({"nf4"})))
    assert room is not None
    assert list(room.trimmed) == THREE


def test_a_signed_document_takes_the_place_of_the_unsigned(
    store: LocalStore, ours: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, tmp_path / "other")
    sign_documents(store, signing_key(ours.private))
    monkeypatch.setenv("KVTOOL_SIGNED_BY", str(ours.public))
    assert push(LocalStore(store.root), tmp_path / "other").copied == THREE
    assert list(LocalStore(tmp_path / "other").values())


@pytest.mark.usefixtures("cache")
def test_a_bucket_that_requires_signatures_gets_no_others(signed: LocalStore, ours: Pair) -> None:
    backend = MemoryBackend("strict", {}, new=True)
    backend.marker = Marker((key_text(signing_key(ours.private).public_key()),))
    assert _into(signed, backend).copied == THREE
    kvtool.compress(signed, "c.txt", recipe="kivi")
    report = _into(signed, MemoryBackend("strict", backend.files))
    assert [str(problem.subject) for problem in report.problems] == ["c.txt"]
    assert "kivi" not in RemoteStore("", MemoryBackend("strict", backend.files))["c.txt"].variants


def _into(source: LocalStore, backend: MemoryBackend) -> Report:
    into = ToFiles(backend)
    return transfer(
        source, into, None, variant=None, overwrite=False, dry_run=False, on_progress=lambda _: None
    )
