"""Documents as they are: listed, and given to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.codecs import Calibration
from kvtool.digest import digest
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document
from kvtool.store.trust.keys import key_text, make_key, signing_key
from kvtool.store.trust.sign_documents import sign_documents
from kvtool.store.trust.signatures import sign
from tests.server.asking import THREE, cached_tokens, chat


def test_documents_are_listed_with_what_they_are(
    client: TestClient, documents: LocalStore, served: kvtool.Model, calibrated: Calibration
) -> None:
    chat(client, documents=["docs/b.txt"])
    body = client.get("/v1/documents").json()
    assert body["object"] == "list"
    assert [entry["name"] for entry in body["data"]] == THREE
    assert [entry["hits"] for entry in body["data"]] == [0, 1, 0]
    entry, document = body["data"][0], documents["docs/a.txt"]
    assert entry["tokens"] == document.n_tokens
    assert entry["segments"] == 1
    assert entry["model"] == served.fingerprint
    assert entry["bytes"] == {name: documents.size("docs/a.txt", name) for name in ("raw", "centred")}
    assert entry["artifacts"] == {
        name: [variant.artifact] for name, variant in document.segments[0].variants.items()
    }
    assert document.prefix_artifact
    assert entry["prefix"] == document.prefix_artifact.artifact
    assert entry["created"] == int(documents.committed("docs/a.txt"))


def test_a_broken_manifest_hides_no_other(client: TestClient, documents: LocalStore) -> None:
    (documents.root / "manifests/docs/b.txt.json").write_text("{}")
    assert [d["name"] for d in client.get("/v1/documents").json()["data"]] == ["docs/a.txt", "docs/c.txt"]
    broken = client.get("/v1/documents/docs/b.txt")
    assert broken.status_code == 500
    assert str(documents.root) not in broken.text


def test_a_manifest_is_given_to_the_byte(client: TestClient, documents: LocalStore) -> None:
    answer = client.get("/v1/documents/docs/a.txt")
    assert answer.content == (documents.root / "manifests/docs/a.txt.json").read_bytes()
    assert Document.from_bytes(answer.content, "") == documents["docs/a.txt"]
    assert answer.headers["etag"] == f'"{digest(answer.content)}"'
    known = {"If-None-Match": f'"x", W/{answer.headers["etag"]}'}
    assert client.get("/v1/documents/docs/a.txt", headers=known).status_code == 304


@pytest.mark.parametrize(
    "name", ["x", "..%2F..%2Fetc%2Fpasswd", "%00", "a%2F%2Fb", "docs", "x" * 300, "x%2F" * 2000 + "x", "%ff"]
)
def test_a_name_that_is_none_is_not_there(client: TestClient, name: str) -> None:
    answer = client.get(f"/v1/documents/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "document_not_found"


def test_what_nobody_trusted_has_signed_is_not_there(
    documents: LocalStore, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_key()
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub.pem").write_bytes(public)
    key = signing_key(tmp_path / "key.pem")
    sign_documents(documents, key, ["docs/b.txt"])
    documents.require([key_text(key.public_key())])
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        assert [entry["name"] for entry in client.get("/v1/documents").json()["data"]] == ["docs/b.txt"]
        assert client.get("/v1/documents/docs/a.txt").status_code == 404
        assert chat(client, documents=["docs/a.txt"], status=404)["error"]["code"] == "document_not_found"
        assert cached_tokens(chat(client, documents=["docs/b.txt"])) > 0
        unsigned, path = documents.stored("docs/a.txt"), "/v1/documents/docs/a.txt"
        refused = client.put(path, content=unsigned.to_bytes(), headers={"If-None-Match": "*"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_signed")
        body = sign(unsigned, key).to_bytes()
        assert client.put(path, content=body, headers={"If-None-Match": "*"}).status_code == 201
        assert client.get(path).content == body
