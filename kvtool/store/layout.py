"""Paths of a store's files below its root, alike in a directory and in a bucket; and stores' addresses."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from kvtool.digest import canonical_json
from kvtool.errors import StoreError
from kvtool.formats import FORMATS
from kvtool.system import files as fs

FORMAT = FORMATS["store"].number
MARKER = "kvtool-store.json"
MANIFESTS, ARTIFACTS, CALIBRATIONS = "manifests", "artifacts", "calibrations"
SOURCES, USES, PINS = "sources", "uses", "pins"
CONTENTS = "contents"
"""Records of a server's cached contents."""

_FILE_NAME_BYTES = 255
_SAFE = " !#$&'()+,-.;=@[]^_`{}~"


def address(root: str | Path) -> str:
    """``root`` as it was meant: a Path writes s3://bucket as s3:/bucket, and file:///folder as file:/folder."""
    text = re.sub(r"^file:/(?!/)", "file:///", str(root))
    return re.sub(r"^(\w{2,}):/(?!/)", r"\1://", text)


def scheme(root: str | Path) -> str:
    """The scheme that ``root`` begins with, such as s3; "" for a directory."""
    match = re.match(r"(\w{2,})://", address(root))
    return match[1] if match else ""


def refuse_missing(root: str | Path) -> None:
    """Raises ``StoreError`` if ``root`` is a directory that does not exist. Says where there is one of that name."""
    path = Path(root)
    if scheme(root) or path.exists():
        return
    here = Path.cwd()
    others = [] if path.is_absolute() else [folder / path for folder in here.parents]
    near = next((other for other in others if (other / MARKER).exists()), None)
    remedy = f"there is one at {near}" if near else "run kvtool prefill first, or name another with --store"
    raise StoreError(path, f"there is no store at {here / path}", remedy)


def artifact_file(digest: str) -> str:
    return f"{ARTIFACTS}/{digest[:2]}/{digest}.safetensors"


def calibration_file(digest: str) -> str:
    return f"{CALIBRATIONS}/{digest}.safetensors"


def manifest_file(name: str) -> str:
    """Raises ``StoreError`` for what cannot be a document's name."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name or not _is_utf8(name):
        raise StoreError(f"{name!r}", "is not a document name", "expected a relative path like docs/guide.md")
    # A folder called x.json must not meet the manifest of a document called x.
    files = [_quoted(part).replace(".json", "%2Ejson") for part in parts[:-1]]
    files.append(_quoted(parts[-1]) + ".json")
    if len(longest := max(files, key=lambda file: len(file.encode())).encode()) > _FILE_NAME_BYTES:
        length = (
            f"its manifest would have a name of {len(longest)} bytes, file systems take {_FILE_NAME_BYTES}"
        )
        raise StoreError(name, f"cannot be stored: {length}", "rename the document")
    return "/".join([MANIFESTS, *files])


def note_file(folder: str, name: str) -> str:
    """The store's note about a document, of which ``folder`` has one each. Raises as ``manifest_file`` does."""
    return folder + manifest_file(name).removeprefix(MANIFESTS)


def document_name(file: str) -> str:
    """The name that ``manifest_file`` gave this one."""
    return unquote(file.removeprefix(f"{MANIFESTS}/")).removesuffix(".json")


@dataclass(frozen=True)
class Marker:
    """What a store says of itself.

    ``signed_by`` are the public keys, in hexadecimal, one of which must have signed each document. ``encrypted_with`` is the id
    of the key that artifacts and calibrations are encrypted with.
    """

    signed_by: tuple[str, ...] = ()
    encrypted_with: str | None = None

    def to_bytes(self) -> bytes:
        signed_by = {"signed_by": list(self.signed_by)} if self.signed_by else {}
        encrypted_with = {"encrypted_with": self.encrypted_with} if self.encrypted_with else {}
        return canonical_json({"format": FORMAT, **signed_by, **encrypted_with}) + b"\n"


def read_marker(data: bytes, where: str) -> Marker:
    """Raises ``StoreError``, naming ``where``, unless it is a store's marker, of a known format."""
    try:
        body: Any = json.loads(data)
        version = body["format"]
        signed_by, encrypted_with = tuple(map(str, body.get("signed_by", []))), body.get("encrypted_with")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = f'it should say {{"format":{FORMAT}}}'
        raise StoreError(where, f"cannot be read ({error})", remedy) from error
    if not isinstance(version, int) or version > FORMAT:
        reason = f"is a store of format {version}, this kvtool reads up to {FORMAT}"
        raise StoreError(where, reason, "upgrade kvtool")
    return Marker(signed_by, encrypted_with if encrypted_with is None else str(encrypted_with))


def _quoted(part: str) -> str:
    quoted = "".join(c if ord(c) > 127 else quote(c, safe=_SAFE) for c in part)
    # What starts like a temporary file would be removed like one.
    return "%2E" + quoted[1:] if quoted.startswith(fs.TEMPORARY) else quoted


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
