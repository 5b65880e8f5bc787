"""The page's pictures: matplotlib draws them, as SVG that follows the page's colours."""

from __future__ import annotations

from importlib.util import find_spec

from kvtool.errors import KvtoolError


def require() -> None:
    """Raises ``KvtoolError`` if matplotlib is missing. Cheap: call it before anything that takes long."""
    if find_spec("matplotlib") is None:
        raise KvtoolError(
            "the page's pictures are drawn by matplotlib, which is not installed",
            "pip install 'kvtool[report]'",
        )
