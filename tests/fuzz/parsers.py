"""What reads bytes from outside, fed with mutations of what is valid (atheris): python tests/fuzz/parsers.py NAME.

Each may refuse with the errors that it says it raises; anything else is found. Options of libFuzzer follow the name.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvtool", "safetensors", "starlette.responses"]):
    from pydantic import ValidationError
    from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable

    from kvtool.artifact.read import Artifact, header_bytes
    from kvtool.codecs.format import container
    from kvtool.codecs.format.container import DTYPES
    from kvtool.codecs.stage import CodecError
    from kvtool.digest import digest
    from kvtool.errors import ArtifactError, UsageError
    from kvtool.server.http.auth import read_tokens
    from kvtool.server.http.errors import ApiError
    from kvtool.server.openai.schemas import ChatRequest, CompletionRequest

HERE = Path(tempfile.mkdtemp())
FILE = HERE / "file"

CHAT = {
    "model": "served",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "One"}]}],
    "documents": ["a.md"],
    "stop": ["\n"],
    "logprobs": True,
    "n": 2,
}
TEXT = {"model": "served", "prompt": [1, 2, 3], "max_tokens": 2, "temperature": 0.5, "recompute": 0.1}


def requests(data: bytes) -> None:
    for kind in (ChatRequest, CompletionRequest):
        with suppress(ValidationError, ApiError):
            found = kind.model_validate_json(data)
            for request in found.to_requests(None):
                assert 1 <= len(request.samplings) <= 16
                assert all(request.stop)
            if isinstance(found, ChatRequest):
                assert all(isinstance(message.message.content, str) for message in found.messages)


def ranges(data: bytes) -> None:
    size = 1000
    with suppress(MalformedRangeHeader, RangeNotSatisfiable):
        found = FileResponse(FILE)._parse_range_header(data.decode("latin-1"), size)
        assert all(0 <= start < end <= size for start, end in found)


def tokens(data: bytes) -> None:
    FILE.write_bytes(data)
    with suppress(UsageError):
        assert read_tokens(FILE).tenants


def an_artifact(data: bytes) -> None:
    FILE.write_bytes(data)
    with suppress(ArtifactError):
        Artifact.open(FILE)


def signed(data: bytes) -> None:
    """A header whose digest is right, whatever it says: mutations of a whole file end at the digest."""
    try:
        header = json.loads(data)
        meta = json.loads(header.pop("__metadata__")["kvtool"])
        entries = {
            name: (DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))) for name, entry in header.items()
        }
        meta.pop("digest", None)
        meta["digest"] = digest(header_bytes(entries, meta))
        head = header_bytes(entries, meta)
        size = len(head) + sum(container.nbytes(entry) for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, CodecError):
        return
    if not len(head) <= size < 1 << 30:
        return
    with FILE.open("wb") as file:
        file.write(head)
        file.truncate(size)
    with suppress(ArtifactError):
        Artifact.open(FILE)


def contained(data: bytes) -> None:
    with suppress(CodecError):
        container.from_bytes(data)


GOLDEN = Path(__file__).parents[1] / "golden"


def _golden(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(pattern))]


def _heads(files: list[bytes]) -> list[bytes]:
    return [file[8 : 8 + int.from_bytes(file[:8], "little")] for file in files]


# Without such beginnings nothing of the right form would be tried within a minute.
PARSERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "requests": (requests, [json.dumps(CHAT).encode(), json.dumps(TEXT).encode()]),
    "ranges": (ranges, [b"bytes=0-9", b"bytes=-5", b"bytes=5-", b"bytes=0-1, 4-5"]),
    "tokens": (tokens, [b"# who\nalice 0123456789abcdef\nbob fedcba9876543210\n"]),
    "artifact": (an_artifact, _golden("artifacts/**/*.safetensors")),
    "signed": (signed, _heads(_golden("artifacts/**/*.safetensors"))),
    "container": (contained, _golden("calibrations/**/*.safetensors")),
}


def main() -> None:
    parse, seeds = PARSERS[sys.argv.pop(1)]
    corpus = HERE / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], parse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
