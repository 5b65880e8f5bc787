"""A store's directory in a bucket: S3 and what speaks like it, Google's, Azure's.

Credentials, region and endpoint are those of the environment, as obstore reads them. An error never repeats what the
service said: that may name a key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from kvtool import limits
from kvtool.artifact.reading import reading
from kvtool.digest import digest
from kvtool.errors import ModelError, StoreError, UsageError
from kvtool.store import layout
from kvtool.store.backends.backend import Listed, NotThere, Unreachable, without_secrets
from kvtool.store.backends.counted import Counted, OnBytes
from kvtool.store.backends.writable import Conflict, WritableFiles

if TYPE_CHECKING:
    from obstore import GetResult

_S3 = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"

SCHEMES = {
    **dict.fromkeys(("s3", "s3a"), _S3),
    "gs": _GOOGLE,
    **dict.fromkeys(("az", "azure", "adl", "abfs", "abfss"), _AZURE),
}
"""Schemes of URLs, and the environment variables that mostly give endpoint and credentials.

docs/how-to/share-a-store.md lists more of them.
"""

SECONDS = 30
"""Silence after which a bucket is given up; so long, and so often, is what failed tried again."""

RETRIES = 3

REQUESTS = 16
"""Ranges of a file that are asked for at a time."""

_CHUNK = limits.MIB
_PAGE = 1000
_URL = re.compile(rf"({'|'.join(SCHEMES)})://[\w.-]+(/[^?#%\\\x00-\x1f]*)?", re.ASCII)
_WHERE = re.compile(r"(AWS|AZURE|GOOGLE)_.*(ENDPOINT|ACCOUNT_NAME|BASE_URL)")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")


class ObjectStoreBackend(WritableFiles):
    """``url`` is ``s3://BUCKET/PREFIX``, or with another of ``SCHEMES``; the store's files are below it.

    Raises ``UsageError`` for another URL, ``ModelError`` without obstore.
    """

    def __init__(self, url: str, *, new: bool = False) -> None:
        if not _URL.fullmatch(url):
            expected = "expected s3://BUCKET/PREFIX, gs:// or az://"
            raise UsageError(
                f"store {without_secrets(url)}", expected, "credentials are given by the environment"
            )
        self.url = url.rstrip("/")
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            reason = f"needs {error.name}: pip install 'kvtool[bucket]'"
            raise ModelError(f"store {self.url}", reason) from error
        try:
            # An endpoint without TLS is one that somebody wrote so. Only silence ends a download, not its length.
            self._store = from_url(
                self.url,
                client_options={"allow_http": True, "read_timeout": f"{SECONDS}s", "timeout": "30days"},
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=SECONDS)},
            )
        except (BaseError, ValueError, OSError):
            raise StoreError(self.url, "cannot be opened", f"check {self._variables}") from None
        super().__init__(new=new)

    @property
    def key(self) -> str:
        where = sorted(f"{name}={value}" for name, value in os.environ.items() if _WHERE.fullmatch(name))
        return digest("\n".join([self.url, *where]).encode())[:32]

    def _manifests(self) -> Iterator[tuple[str, Listed]]:
        with self._as_store_errors(layout.MANIFESTS):
            for page in self._store.list(layout.MANIFESTS, chunk_size=_PAGE):
                for file in page:
                    yield file["path"], Listed(file["e_tag"] or "", file["last_modified"].timestamp())

    def _open(self, file: str) -> tuple[int, Iterator[bytes]]:
        with self._as_store_errors(file):
            answer = self._store.get(file)
            return answer.meta["size"], self._chunks(file, answer)

    def _chunks(self, file: str, answer: GetResult) -> Iterator[bytes]:
        with self._as_store_errors(file):
            for chunk in answer.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    def parts(self, digest: str, ranges: Sequence[range]) -> Sequence[bytes]:
        # A bucket takes one range a request.
        file = layout.artifact_file(digest)
        with ThreadPoolExecutor(min(REQUESTS, len(ranges))) as pool:
            return list(pool.map(lambda wanted: self._range(file, wanted.start, wanted.stop), ranges))

    def _range(self, file: str, start: int, stop: int) -> bytes:
        with self._as_store_errors(file):
            return bytes(self._store.get_range(file, start=start, end=stop))

    @property
    def stale(self) -> str:
        return json.dumps({"e_tag": '"00000000000000000000000000000000"'})

    def nbytes_of(self, file: str) -> int | None:
        try:
            with self._as_store_errors(file):
                return int(self._store.head(file)["size"])
        except NotThere:
            return None

    def put(self, file: str, path: Path, on_bytes: OnBytes) -> None:
        # A file that is gone here is no error of the service.
        with reading(path), path.open("rb") as content, self._as_store_errors(file, "written"):
            self._store.put(file, cast("IO[bytes]", Counted(content, on_bytes)))

    def versioned(self, file: str) -> tuple[bytes, str] | None:
        try:
            with self._as_store_errors(file):
                answer = self._store.get(file)
                named = {"e_tag": answer.meta["e_tag"], "version": answer.meta["version"]}
                version = json.dumps({name: value for name, value in named.items() if value})
        except NotThere:
            return None
        if answer.meta["size"] > limits.MANIFEST_BYTES:
            raise StoreError(
                f"{self.url}/{file}", f"has {answer.meta['size']:,} bytes, too many for a manifest"
            )
        with self._as_store_errors(file):
            return bytes(answer.bytes()), version

    def swap(self, file: str, data: bytes, version: str | None) -> None:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        mode: Any = "create"
        if version is not None:
            mode = json.loads(version)
        with self._as_store_errors(file, "written"):
            try:
                self._store.put(file, data, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                raise Conflict(f"{self.url}/{file}", "was changed meanwhile") from None
            except BaseError as error:
                # What S3 answers to one of two that write at the same time.
                if _status(error) in ("409", "412"):
                    raise Conflict(f"{self.url}/{file}", "was changed meanwhile") from None
                raise

    @contextmanager
    def _as_store_errors(self, file: str, verb: str = "read") -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        # None of them is kept as the cause, which is shown with --debug.
        except (BaseError, OSError, ValueError) as error:
            status = "404" if isinstance(error, FileNotFoundError) else _status(error)
            raise self._error(f"{self.url}/{file}", status, verb) from None

    def _error(self, where: str, status: str | None, verb: str) -> StoreError:
        if status == "404":
            return NotThere(where, "is missing")
        if status in ("401", "403"):
            may = "list and read it" if verb == "read" else "write to it"
            remedy = f"check that {self._variables} are those of one who may {may}"
            return StoreError(where, f"may not be {verb} ({status})", remedy)
        answer = f"the service answered {status}" if status else "no answer"
        if status is not None and not status.startswith("5"):
            return StoreError(where, answer, f"check the name, and {self._variables}")
        return Unreachable(where, f"cannot be reached ({answer})", f"check {self._variables}")

    @property
    def _variables(self) -> str:
        return SCHEMES[self.url.partition(":")[0]]


def _status(error: Exception) -> str | None:
    match = _STATUS.search(str(error))
    return match and match[1]
