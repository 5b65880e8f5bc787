"""Push and pull over connections that break and services that answer errors: in the end all is there, and all is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvtool import Store
from kvtool.errors import KvtoolError
from kvtool.server.app import create_app
from kvtool.server.runtime.service import Service
from kvtool.store.local import LocalStore
from kvtool.store.transfer.pull import pull
from kvtool.store.transfer.push import push
from tests.faulty import Fault, Faulty, once, sometimes
from tests.loopback import URL, Objects, endpoint, listen, objects
from tests.server.asking import THREE

__all__ = ["endpoint", "objects"]

pytestmark = pytest.mark.usefixtures("cache")

ATTEMPTS = 40


def insist(run: Callable[[], object]) -> int:
    """Starts the same copy again until it has no problem, as a person would. Returns how often."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if not run().problems:  # type: ignore[attr-defined]
                return attempt
        except KvtoolError:
            continue
    raise AssertionError(f"not done after {ATTEMPTS} attempts")


def check(store: Store, original: LocalStore) -> None:
    assert dict(store) == dict(original)
    for name in THREE:
        for variant in original[name].artifacts:
            store.open_artifact(variant).verify()


@pytest.fixture
def mine(documents: LocalStore, tmp_path: Path) -> LocalStore:
    return LocalStore(shutil.copytree(documents.root, tmp_path / "mine"))


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> object:
    """Starts a faulty proxy before an address, with which the environment leads to the bucket."""
    with ExitStack() as stack:

        def start(upstream: str, faults: Callable[[str, str], Fault]) -> tuple[str, Faulty]:
            proxy = Faulty(upstream, faults)
            address = stack.enter_context(listen(proxy))
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            return address, proxy

        yield start


class TestServer:
    def test_a_pull_over_connections_that_break(
        self,
        service: Service,
        mine: LocalStore,
        tmp_path: Path,
        behind: Callable[..., tuple[str, Faulty]],
    ) -> None:
        with listen(create_app(service)) as server:
            address, proxy = behind(server, sometimes("drop"))
            copy = LocalStore(tmp_path / "copy")
            insist(lambda: pull(Store(address), copy))
            assert "drop" in proxy.done
            check(copy, mine)
            assert not list(copy.root.rglob(".tmp-*"))

    @pytest.mark.parametrize("fault", ["drop", 503])
    def test_a_push_over_connections_that_break(
        self,
        service: Service,
        documents: LocalStore,
        mine: LocalStore,
        behind: Callable[..., tuple[str, Faulty]],
        fault: Fault,
    ) -> None:
        documents.free(list(documents))
        with listen(create_app(service)) as server:
            address, proxy = behind(server, sometimes(fault))
            insist(lambda: push(mine, address))
            assert fault in proxy.done
            check(documents, mine)


class TestBucket:
    def test_a_bucket_that_answers_503_is_asked_again(
        self,
        mine: LocalStore,
        objects: Objects,
        endpoint: str,
        tmp_path: Path,
        behind: Callable[..., tuple[str, Faulty]],
    ) -> None:
        _, proxy = behind(endpoint, once(503))
        assert push(mine, URL).problems == []
        assert 503 in proxy.done
        copy = LocalStore(tmp_path / "copy")
        assert pull(Store(URL), copy).problems == []
        check(copy, mine)

    def test_a_bucket_whose_connections_break(
        self,
        mine: LocalStore,
        objects: Objects,
        endpoint: str,
        tmp_path: Path,
        behind: Callable[..., tuple[str, Faulty]],
    ) -> None:
        _, proxy = behind(endpoint, sometimes("drop"))
        insist(lambda: push(mine, URL))
        copy = LocalStore(tmp_path / "copy")
        insist(lambda: pull(Store(URL), copy))
        assert "drop" in proxy.done
        check(copy, mine)

    def test_a_manifest_that_is_another_by_now_is_read_again(
        self, mine: LocalStore, objects: Objects, endpoint: str, behind: Callable[..., tuple[str, Faulty]]
    ) -> None:
        # Of each manifest, somebody else was faster at first.
        _, proxy = behind(endpoint, once(412, "PUT", "/manifests/"))
        assert push(mine, URL).copied == THREE
        assert proxy.done.count(412) == 3
        check(Store(URL), mine)
