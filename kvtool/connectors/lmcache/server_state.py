"""What a running LMCache server says of itself over HTTP: its settings, and the layouts of the models that it serves.

Of LMCache 0.5.6 it relies on ``GET /config``, with ``mp.chunk_size``, ``mp.shm_name`` and ``mp.supported_transfer_mode``, and
on ``GET /status``, with ``cache_context_meta``: for each engine that has registered its cache ``model_name``,
``world_size`` and ``kv_cache_layout``. Needs no LMCache on this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import ProxyHandler, build_opener

from kvtool import limits
from kvtool.errors import StoreError, UsageError
from kvtool.store.backends.backend import without_secrets

SECONDS = 10.0
"""Silence after which a server is given up."""

EXPECTED = "expected lmcache://HOST:PORT, and after a ? any of http=PORT, model=NAME and salt=TEXT, with & between them"


SPLIT = [
    [*two, *rest] for two in (["NB", "2"], ["2", "NB"]) for rest in (["NH", "BS", "HS"], ["BS", "NH", "HS"])
]
"""Axes of an engine's blocks in which keys and values have one of their own."""


@dataclass(frozen=True)
class Address:
    """``lmcache://HOST:PORT?http=PORT&model=NAME&salt=TEXT``: the server's ports, the model's name there, a salt."""

    host: str
    port: int
    http_port: int = 8080
    model: str | None = None
    salt: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ``UsageError``, naming what is wrong, but nothing of what stands after the ``?``: it may be a salt."""
        shown = without_secrets(text)
        try:
            url = urlsplit(text)
            host, port = url.hostname, url.port
        except ValueError as error:
            raise UsageError(shown, f"is no address ({error})", EXPECTED) from None
        if url.scheme != "lmcache" or not host or not port or url.path.strip("/") or url.fragment:
            raise UsageError(shown, "is no address of an LMCache server", EXPECTED)
        try:
            given = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
            http, model, salt = (
                int(given.pop("http", "8080")),
                given.pop("model", None),
                given.pop("salt", ""),
            )
        except ValueError:
            raise UsageError(shown, "has after its ? what is no option", EXPECTED) from None
        if given:
            raise UsageError(shown, "has an unknown option after its ?", EXPECTED)
        return cls(host, port, http, model, salt)

    def __str__(self) -> str:
        return f"lmcache://{self._host}:{self.port}"

    @property
    def requests_url(self) -> str:
        """Of its requests, over ZeroMQ."""
        return f"tcp://{self._host}:{self.port}"

    @property
    def http_url(self) -> str:
        return f"http://{self._host}:{self.http_port}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True)
class Layout:
    """An engine's layout of a model's cache: ``layers`` alike, whose keys and values have ``heads`` of ``channels``."""

    model: str
    layers: int
    heads: int
    channels: int
    dtype: str
    world_size: int = 1

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.heads} x {self.channels} {self.dtype}"


@dataclass(frozen=True)
class ServerState:
    """``layouts`` are by the models' names; those that nothing can be pushed for have the reason in ``unfit``."""

    chunk_size: int
    layouts: Mapping[str, Layout]
    unfit: Mapping[str, str]

    @classmethod
    def read(cls, address: Address) -> ServerState:
        """Raises ``StoreError`` for a server that does not answer, is none of LMCache's, or takes no caches from outside."""
        config, status = _get(address, "/config"), _get(address, "/status")
        try:
            settings, engines = config["mp"], status["cache_context_meta"]
            chunk_size = int(settings["chunk_size"])
            mode, shared = str(settings["supported_transfer_mode"]), str(settings.get("shm_name", ""))
            layouts, unfit = _layouts(engines)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"answers otherwise than LMCache 0.5.6 does ({type(error).__name__}: {error})"
            raise StoreError(address, reason, "is it an LMCache server?") from error
        if mode not in ("auto", "engine_driven"):
            reason = f"takes caches from engines alone (--supported-transfer-mode is {mode})"
            raise StoreError(address, reason, "start it with --supported-transfer-mode auto")
        if not shared:
            remedy = "start it with --shm-name NAME: without shared memory LMCache would be sent pickles"
            raise StoreError(address, "shares no memory", remedy)
        return cls(chunk_size, layouts, unfit)

    def layout(self, address: Address, name: str) -> Layout:
        """The layout of the model that is meant. Raises ``StoreError`` if no engine has registered it, or it is unfit."""
        wanted = address.model or name
        if wanted in self.layouts:
            return self.layouts[wanted]
        if wanted in self.unfit:
            raise StoreError(address, f"takes no caches of {wanted}: {self.unfit[wanted]}")
        if not (have := ", ".join([*self.layouts, *self.unfit])):
            raise StoreError(address, "serves no model yet", "start vLLM with its LMCache connector first")
        remedy = "if it is the same model under another name, say so with ?model=NAME"
        raise StoreError(address, f"serves no model called {wanted!r}, only {have}", remedy)


class _Unfit(Exception):
    pass


def _layouts(engines: Mapping[str, Any]) -> tuple[dict[str, Layout], dict[str, str]]:
    """The layouts by the models' names, and why there is none for a name.

    LMCache's key leaves the layout out. So all engines of a name must have the same one.
    """
    layouts: dict[str, Layout] = {}
    unfit: dict[str, str] = {}
    for engine in engines.values():
        name = str(engine["model_name"])
        try:
            layout = _layout(name, engine)
            if layouts.setdefault(name, layout) != layout:
                raise _Unfit(
                    f"engines of that name lay caches out in different ways ({layouts[name]} and {layout}), and would read one "
                    "another's; give each a name of its own"
                )
        except _Unfit as error:
            unfit.setdefault(name, str(error))
    return {name: layout for name, layout in layouts.items() if name not in unfit}, unfit


def _layout(name: str, engine: Mapping[str, Any]) -> Layout:
    layout, world_size = engine["kv_cache_layout"], int(engine["world_size"])
    groups = layout["kernel_groups"]
    if len(groups) != 1:
        raise _Unfit(f"its layers are of {len(groups)} kinds, and LMCache's SDK knows one")
    (group,) = groups
    if group["is_mla"]:
        raise _Unfit("its caches are latents (MLA), which LMCache's SDK does not take")
    if world_size != 1:
        raise _Unfit(f"it runs on {world_size} ranks, and LMCache's SDK stores for the first alone")
    # "30 x [2048, 2, 3, 16, 64]", whose axes "NL x [NB, 2, NH, BS, HS]" names.
    axes, sizes = (
        re.split(r",\s*", str(group[f"engine_kv_{name}shape"]).partition("[")[2].rstrip("] "))
        for name in ("", "concrete_")
    )
    if axes not in SPLIT:
        raise _Unfit(
            f"its blocks are {group['engine_kv_shape']}, and which channels are keys is then up to the attention that vLLM "
            "chose; kvtool's connector for vLLM loads into them"
        )
    by_axis = dict(zip(axes, map(int, sizes), strict=True))
    dtype = str(group["dtype"]).removeprefix("torch.")
    return Layout(name, int(layout["num_layers"]), by_axis["NH"], by_axis["HS"], dtype, world_size)


def _get(address: Address, path: str) -> Any:
    url = address.http_url + path
    try:
        # No proxy: the server shares memory with this machine.
        with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:
            body = answer.read(limits.MANIFEST_BYTES + 1)
        if len(body) > limits.MANIFEST_BYTES:
            raise ValueError(f"more than {limits.MANIFEST_BYTES} bytes")
        return json.loads(body)
    except (OSError, HTTPException) as error:
        remedy = "is its HTTP port another? name it with ?http=PORT"
        raise StoreError(url, f"does not answer ({getattr(error, 'reason', error)})", remedy) from error
    except ValueError as error:
        raise StoreError(url, f"is not JSON ({error})", "is it an LMCache server?") from error
