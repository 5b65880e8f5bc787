"""What the tests of reading share: a file's text, the warning about it, the error instead of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvtool.documents.read import read_text
from kvtool.errors import DocumentError


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        warnings: list[DocumentError] = []
        text = read_text(tmp_path / name, warnings)
        assert warnings == []
        return text

    return read


@pytest.fixture
def read_with_warning(tmp_path: Path) -> Any:
    """The text of a file, and the one-line warning about it, which must name the file."""

    def read(name: str, data: bytes) -> tuple[str, str]:
        (tmp_path / name).write_bytes(data)
        warnings: list[DocumentError] = []
        text = read_text(tmp_path / name, warnings)
        (warning,) = map(str, warnings)
        assert warning.startswith(f"{tmp_path / name}: ")
        assert "\n" not in warning
        return text, warning

    return read


@pytest.fixture
def error(tmp_path: Path) -> Any:
    """The one-line message for a file, which must name the file."""

    def error(name: str, data: bytes | None = None) -> str:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DocumentError) as caught:
            read_text(tmp_path / name, [])
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: ")
        assert "\n" not in message
        return message

    return error
