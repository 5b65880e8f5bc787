"""Documents as they are: listed, and given to the byte."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

import kvtool
from kvtool.codecs import Calibration
from kvtool.digest import digest
from kvtool.store.local import LocalStore
from kvtool.store.manifest import Document
from tests.server.asking import THREE, chat


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
