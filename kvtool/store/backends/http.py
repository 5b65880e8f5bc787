"""A server's documents and artifacts, over HTTP. What arrives is not trusted: who asked for it checks it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from kvtool import limits
from kvtool.artifact.reading import reading
from kvtool.artifact.sealed import open_file, stat_plain
from kvtool.digest import digest
from kvtool.errors import StoreError, UsageError
from kvtool.store.backends.backend import Listed, NotThere, Unreachable, without_secrets
from kvtool.store.backends.byte_ranges import batched, most_bytes, parse_parts, range_header
from kvtool.store.backends.counted import Counted, OnBytes
from kvtool.store.backends.writable import Conflict
from kvtool.store.layout import Marker

SECONDS = 30.0
"""Silence after which a server is given up."""

CHECKED = 50e6
"""Bytes that a server checks in a second, at the least."""

WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try, while a server takes no more uploads."""

_CHUNK = limits.MIB
_URL = re.compile(r"https?://([\w.-]+|\[[\w:.]+\])(:\d{1,5})?(/[\w.~%/-]*)?", re.ASCII)


class Busy(StoreError):
    """The server takes no more uploads for now."""


class HttpBackend:
    """``url`` is ``http://HOST:PORT`` or ``https://HOST``, with a path if the server stands below one.

    The bearer token is ``$KVTOOL_TOKEN``. All methods raise ``StoreError``, naming the address and the remedy.
    """

    marker = Marker()
    """A server sends artifacts as they are, and sees itself to whose signatures its store requires."""

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self._token = os.environ.get("KVTOOL_TOKEN", "").strip()
        if not (self._token.isascii() and self._token.isprintable()):
            reason = "has characters that no token has"
            raise UsageError("KVTOOL_TOKEN", reason, "expected the token of the server's file")
        # A redirect could lead anywhere, and would be given the token.
        self._opener = build_opener(_NoRedirects)

    @property
    def key(self) -> str:
        """Tells servers apart, and what the holders of different tokens see of one."""
        return digest(f"{self.url}\n{self._token}".encode())[:32]

    def documents(self) -> Mapping[str, Listed]:
        path = "/v1/documents"
        data = b"".join(self._get(path, limits.MANIFEST_BYTES))
        try:
            documents = {entry["name"]: _listed(entry) for entry in json.loads(data)["data"]}
            if not all(isinstance(name, str) for name in documents):
                raise TypeError("a name is no text")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"is no list of documents ({type(error).__name__}: {error})"
            raise StoreError(f"{self.url}{path}", reason, "is it a kvtool server?") from error
        return documents

    def manifest(self, name: str) -> bytes:
        return b"".join(self._get(f"/v1/documents/{quote(name)}", limits.MANIFEST_BYTES))

    def artifact(self, digest: str, nbytes: int) -> Iterator[bytes]:
        return self._get(f"/v1/artifacts/{digest}", nbytes)

    def parts(self, digest: str, ranges: Sequence[range]) -> Sequence[bytes]:
        return [part for some in batched(ranges) for part in self._parts(f"/v1/artifacts/{digest}", some)]

    def _parts(self, path: str, ranges: Sequence[range]) -> Sequence[bytes]:
        with self._answer(path, range_header(ranges)) as answer:
            body = b"".join(self._body(self.url + path, answer, most_bytes(ranges)))
            try:
                return parse_parts(answer.headers, body, ranges)
            except ValueError as error:
                reason = f"sends other ranges than were asked for ({error})"
                raise StoreError(self.url + path, reason, "is it a kvtool server?") from None

    def calibration(self, digest: str) -> Iterator[bytes]:
        return self._get(f"/v1/calibrations/{digest}", limits.CALIBRATION_BYTES)

    # Writing

    def versioned(self, name: str) -> tuple[bytes, str] | None:
        """A document's manifest and its ETag; None if there is none."""
        path = f"/v1/documents/{quote(name)}"
        try:
            with self._answer(path) as answer:
                etag = answer.headers.get("ETag", "")
                return b"".join(self._body(self.url + path, answer, limits.MANIFEST_BYTES)), etag
        except NotThere:
            return None

    def swap(self, name: str, manifest: bytes, version: str | None) -> None:
        """Replaces the manifest of that version, or one that is missing. Raises ``Conflict`` if it is another by now."""
        condition = {"If-None-Match": "*"} if version is None else {"If-Match": version}
        headers = {"Content-Type": "application/json", **condition}
        with self._sent(f"/v1/documents/{quote(name)}", manifest, headers):
            pass

    def nbytes_of(self, kind: str, digest: str) -> int | None:
        """The size of an artifact's file, or a calibration's; None if there is none."""
        try:
            with self._answer(f"/v1/{kind}s/{digest}", method="HEAD") as answer:
                return int(answer.headers.get("Content-Length", -1))
        except NotThere:
            return None

    def put(self, kind: str, digest: str, path: Path, on_bytes: OnBytes) -> None:
        """Sends the file of an artifact or a calibration, which the server checks. ``on_bytes`` counts what is sent."""
        for patience in (*WAITS, 0):
            try:
                # As they are: a server has a key of its own, or none.
                with reading(path), open_file(path) as file:
                    size = stat_plain(path).st_size
                    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
                    body = Counted(file, on_bytes)
                    # The server reads all of it once more before it answers.
                    seconds = SECONDS + size / CHECKED
                    with self._sent(f"/v1/{kind}s/{digest}", body, headers, seconds):
                        return
            except Busy:
                if not patience:
                    raise
                time.sleep(patience)

    def _sent(
        self, path: str, body: Any, headers: Mapping[str, str], seconds: float = SECONDS
    ) -> AbstractContextManager[HTTPResponse]:
        return self._answer(path, headers, method="PUT", body=body, seconds=seconds)

    def _get(self, path: str, most: int) -> Iterator[bytes]:
        with self._answer(path) as answer:
            yield from self._body(self.url + path, answer, most)

    def _body(self, url: str, answer: HTTPResponse, most: int) -> Iterator[bytes]:
        size = 0
        while chunk := answer.read(_CHUNK):
            size += len(chunk)
            if size > most:
                reason = f"sends more than {most:,} bytes, which it should not"
                raise StoreError(url, reason, "nothing was kept")
            yield chunk
        if answer.length:
            raise Unreachable(url, f"broke off after {size:,} bytes", "run the same command again")

    @contextmanager
    def _answer(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: Any = None,
        seconds: float = SECONDS,
    ) -> Iterator[HTTPResponse]:
        url = self.url + path
        headers = dict(headers or {})
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with self._opener.open(Request(url, body, headers, method=method), timeout=seconds) as answer:
                yield answer
        except HTTPError as error:
            with error:
                raise _refusal(url, error) from error
        # The last two are about hosts and ports that no system takes.
        except (OSError, HTTPException, OverflowError, UnicodeError) as error:
            cause = error.reason if isinstance(error, URLError) else error or type(error).__name__
            if method == "PUT" and isinstance(cause, (BrokenPipeError, ConnectionResetError)):
                # It answered before all was sent, and that answer is lost.
                raise Busy(url, f"took no more of what was sent ({cause})", "try again later") from error
            if isinstance(cause, SSLCertVerificationError):
                reason = f"its certificate is not trusted ({cause.verify_message})"
                remedy = "SSL_CERT_FILE names the file of an authority that the system does not know"
                raise StoreError(url, reason, remedy) from error
            reason = f"cannot be reached ({cause})"
            raise Unreachable(url, reason, "is kvtool serve-cache running there?") from error


def _listed(entry: Any) -> Listed:
    return Listed(str(entry.get("manifest", "")), float(int(entry.get("created", 0))))


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _refusal(url: str, error: HTTPError) -> StoreError:
    if error.code == 401:
        return StoreError(url, "knows no such token", "set KVTOOL_TOKEN to one of the server's file")
    if 300 <= error.code < 400:
        target = error.headers.get("Location", "")[:200]
        return StoreError(url, f"redirects to {target!r}, which is not followed", "name that server itself")
    message = str(error.reason)
    with suppress(OSError, HTTPException, ValueError, KeyError, TypeError):
        message = str(json.loads(error.read(64 * limits.KIB))["error"]["message"])[:300]
    if error.code == 412:
        return Conflict(url, message)
    if error.code == 429:
        return Busy(url, f"answered 429 ({message})", "try again later")
    if error.code == 404:
        return NotThere(url, f"is missing ({message})")
    return StoreError(url, f"answered {error.code} ({message})")


def _checked(url: str) -> str:
    """Without a slash at its end, and without the /v1 of the address that OpenAI's clients are given."""
    if not _URL.fullmatch(url):
        expected = (
            "http://HOST:PORT or https://HOST:PORT, with a token in KVTOOL_TOKEN, or s3://BUCKET/PREFIX"
        )
        raise UsageError(f"store {without_secrets(url)}", f"expected {expected}")
    return url.rstrip("/").removesuffix("/v1")
