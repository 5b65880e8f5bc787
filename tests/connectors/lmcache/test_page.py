"""The page docs/how-to/lmcache.md: its configurations say what kvtool and LMCache take."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
import yaml

from kvtool.connectors.lmcache.options import SerdeOptions
from kvtool.connectors.lmcache.server_state import Address
from tests.docs.blocks import ROOT, blocks

FILES = {
    block.needs["file"]: block.text
    for block in blocks(ROOT / "docs" / "how-to" / "lmcache.md")
    if "file" in block.needs
}
COMPOSE = yaml.safe_load(FILES["compose.yaml"])["services"]


def option(service: str, name: str) -> Any:
    """The JSON of an option of a service's command."""
    (text,) = (each for each in COMPOSE[service]["command"] if each.startswith(f"--{name}="))
    return json.loads(text.partition("=")[2])


ADAPTERS = [
    json.loads(FILES["kivi.json"]),
    json.loads(FILES["klt.json"]),
    option("lmcache", "l2-adapter"),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["kivi", "klt", "compose"])
def test_serdes_have_options_that_there_are(adapter: dict[str, Any]) -> None:
    serde = dict(adapter["serde"])
    assert serde.pop("type") == "kvtool"
    assert SerdeOptions.parse(serde).recipe in ("kivi", "klt")


def test_the_deployment_pushes_to_the_server_that_vllm_is_told() -> None:
    _, _, url, *_ = COMPOSE["push"]["command"].split()
    told = option("vllm", "kv-transfer-config")["kv_connector_extra_config"]
    address = Address.parse(url)
    assert (f"tcp://{address.host}", address.port) == (told["lmcache.mp.host"], told["lmcache.mp.port"])


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["kivi", "klt", "compose"])
def test_lmcache_takes_the_adapters(adapter: dict[str, Any]) -> None:
    config = pytest.importorskip("lmcache.v1.distributed.l2_adapters.config")
    given = argparse.Namespace(l2_adapter=[json.dumps(adapter)])
    (parsed,) = config.parse_args_to_l2_adapters_config(given).adapters
    assert (parsed.class_name, parsed.serde_config.type) == ("Adapter", "kvtool")


def test_lmcache_takes_the_deployments_command() -> None:
    command = pytest.importorskip("lmcache.cli.commands.server").ServerCommand()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parsed = parser.parse_args(COMPOSE["lmcache"]["command"][2:])
    assert (parsed.shm_name, parsed.supported_transfer_mode) == ("caches", "auto")
    # Its defaults are the address's.
    assert (parsed.port, parsed.http_port, parsed.chunk_size) == (5555, 8080, 256)
