"""Keys in files and in the environment, and what is no key."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kvtool.errors import UsageError
from kvtool.store.trust.keys import BadKey, key_id, key_text, public_key, signing_key, trusted_keys
from tests.store.trust.conftest import Pair


def test_files_and_environment(ours: Pair, theirs: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    key = signing_key(ours.private)
    id = key_id(key.public_key())
    assert list(trusted_keys([ours.public])) == [id]
    assert trusted_keys() == {}
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", str(ours.private))
    assert key_id(signing_key().public_key()) == id
    monkeypatch.setenv("KVTOOL_SIGNING_KEY", ours.private.read_text())
    assert key_id(signing_key().public_key()) == id
    monkeypatch.setenv("KVTOOL_SIGNED_BY", os.pathsep.join([str(ours.public), str(theirs.public)]))
    assert len(trusted_keys()) == 2
    monkeypatch.setenv("KVTOOL_SIGNED_BY", ours.public.read_text() + theirs.public.read_text())
    assert len(trusted_keys()) == 2
    assert key_id(public_key(key_text(key.public_key()))) == id


def test_keys_of_openssl(tmp_path: Path) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert list(trusted_keys([public])) == [key_id(signing_key(private).public_key())]


def test_what_is_no_key(ours: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="name its file with --key or in KVTOOL_SIGNING_KEY"):
        signing_key()
    with pytest.raises(BadKey, match=r"missing\.pem: cannot be read"):
        signing_key(Path("missing.pem"))
    with pytest.raises(BadKey, match="is no private key"):
        signing_key(ours.public)
    with pytest.raises(BadKey, match="is no public key"):
        trusted_keys([ours.private])
    curve = ec.generate_private_key(ec.SECP256R1())
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "curve.pem").write_bytes(curve.private_bytes(*formats))
    with pytest.raises(BadKey, match="is no private key"):
        signing_key(tmp_path / "curve.pem")
    (tmp_path / "text").write_text("a secret that must not be shown")
    with pytest.raises(BadKey, match="is no key") as error:
        trusted_keys([tmp_path / "text"])
    assert "secret" not in str(error.value)
    monkeypatch.setenv("KVTOOL_SIGNED_BY", "-----BEGIN PUBLIC KEY-----\nsecret\n-----END PUBLIC KEY-----\n")
    with pytest.raises(BadKey, match="KVTOOL_SIGNED_BY: is no public key") as error:
        trusted_keys()
    assert "secret" not in str(error.value)
