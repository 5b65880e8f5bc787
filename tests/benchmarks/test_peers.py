"""A peer's worker and kvtool's side of it, with a peer made for the purpose; what the real ones are made from."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.peers import environments
from benchmarks.peers.client import Peer, PeerError

WORKER = Path(environments.__file__).parent / "worker.py"
PEER = """
import os
import sys

sys.path.insert(0, {folder!r})
import worker

print("a library says hello")
import torch

times = []


def bfloat16(request, *, scale=1.0):
    print("encoding")
    os.system("echo from a process of its own")
    times.append(len(times))
    layers = [tuple((scale * x.float()).bfloat16() for x in layer) for layer in request.layers]
    return worker.Restored(layers, {{"codes": sum(worker.nbytes(*x) for x in layers), "scales": 4}}, times[-1], 0.5)


def half_the_tokens(request):
    layers = [tuple(x[:, ::2] for x in layer) for layer in request.layers]
    return worker.Restored(layers, {{"all": 7}}, 0.0, 0.0, covers_prefix=True)


def forgetful(request):
    return worker.Restored(request.layers[:-1], {{}}, 0.0, 0.0)


def fails(request):
    raise RuntimeError("no such luck")


def dies(request):
    sys.stderr.write("out of cheese\\n")
    sys.stderr.flush()
    os._exit(3)


names = [bfloat16, half_the_tokens, forgetful, fails, dies]
worker.serve("fake", "1.2", {{f.__name__: worker.Method(f, f"it {{f.__name__}}", "2310.07240") for f in names}})
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peer") / "fake.py"
    path.write_text(PEER.format(folder=str(WORKER.parent)))
    return path


@pytest.fixture(scope="module")
def peer(script: Path) -> Iterator[Peer]:
    with Peer(Path(sys.executable), script) as peer:
        yield peer


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    given = {"token_ids": torch.arange(10), "prefix_ids": torch.arange(3)}
    for layer in ("layers.0000", "layers.0001"):
        both = torch.randn(2, 10, 14)  # one storage, as slices of a model's cache may be
        given |= {f"{layer}.keys": both[..., :8], f"{layer}.values": both[..., 8:]}
    return given


def test_a_peer_says_what_it_is_however_much_its_libraries_print(peer: Peer) -> None:
    assert (peer.name, peer.version) == ("fake", "1.2")
    method = peer.methods["bfloat16"]
    assert (method.summary, method.paper, method.parameters) == ("it bfloat16", "2310.07240", {"scale": 1.0})


def test_tensors_come_back_as_the_peer_restored_them(peer: Peer, tensors: dict[str, Tensor]) -> None:
    restored = peer.restore("bfloat16", {"scale": 2.0}, tensors, Path("model"))
    assert sorted(restored.tensors) == sorted(tensors)
    assert torch.equal(restored.tensors["token_ids"], tensors["token_ids"].int())
    for name, tensor in tensors.items():
        if name.startswith("layers"):
            assert torch.equal(restored.tensors[name], (2 * tensor.half().float()).bfloat16().float())
    assert restored.parts == {"codes": 2 * 2 * 10 * (8 + 6) * 2, "scales": 4}
    assert restored.nbytes == sum(restored.parts.values())
    assert not restored.covers_prefix


def test_seconds_are_the_median_of_the_repeats_without_the_first_run(
    script: Path, tensors: dict[str, Tensor]
) -> None:
    with Peer(Path(sys.executable), script) as fresh:
        restored = fresh.restore("bfloat16", {}, tensors, Path("model"), repeats=3)
    assert (restored.encode_seconds, restored.decode_seconds) == (2, 0.5)  # runs 1, 2 and 3 of 0 to 3


def test_a_peer_that_prunes_may_return_fewer_tokens(peer: Peer, tensors: dict[str, Tensor]) -> None:
    restored = peer.restore("half_the_tokens", {}, tensors, Path("model"))
    assert restored.covers_prefix
    assert restored.tensors["layers.0001.values"].shape == (2, 5, 6)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("fails", {}, "fake.py: fails: RuntimeError: no such luck\n(?s:.)*Traceback"),
        ("other", {}, "no method other; there are bfloat16, "),
        ("bfloat16", {"bits": 3}, "bfloat16 has no parameter bits; it has scale"),
        ("forgetful", {}, "layers.0001.keys came back missing or misshapen"),
    ],
)
def test_an_error_is_raised_here_and_the_peer_goes_on(
    peer: Peer, tensors: dict[str, Tensor], method: str, parameters: dict[str, int], message: str
) -> None:
    with pytest.raises(PeerError, match=message):
        peer.restore(method, parameters, tensors, Path("model"))
    assert peer.restore("bfloat16", {}, tensors, Path("model")).nbytes


def test_what_float16_does_not_hold_is_refused(peer: Peer, tensors: dict[str, Tensor]) -> None:
    tensors["layers.0001.keys"][0, 0, 0] = 1e5
    with pytest.raises(PeerError, match="values that float16 does not hold"):
        peer.restore("bfloat16", {}, tensors, Path("model"))


def test_a_peer_that_dies_is_named_with_its_last_words(script: Path, tensors: dict[str, Tensor]) -> None:
    with Peer(Path(sys.executable), script) as mortal:
        for _ in range(2):  # the second time nobody reads the request
            with pytest.raises(PeerError, match=r"dies: ended with exit code 3\n(?s:.)*out of cheese"):
                mortal.restore("dies", {}, tensors, Path("model"))


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_the_kind\n")
    with pytest.raises(PeerError, match=r"start: ended with exit code 1\n(?s:.)*nothing_of_the_kind"):
        Peer(Path(sys.executable), broken).__enter__()
    with pytest.raises(PeerError, match="make peers"):
        Peer(tmp_path / "python", broken).__enter__()


def test_every_peer_has_a_script_and_exact_pins() -> None:
    assert len(environments.names()) == 4
    for name in environments.names():
        assert "import kvtool" not in environments.script(name).read_text()
        pins = (WORKER.parent / f"{name}{environments.REQUIREMENTS}").read_text().splitlines()
        packages = [pin for pin in pins if pin and not pin.startswith("#")]
        assert [pin for pin in packages if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin)] == []
        assert len({pin.split("==")[0].lower() for pin in packages}) == len(packages)
        assert {"torch==2.13.0", "safetensors==0.8.0"} <= set(packages)


def test_an_environment_is_made_once_for_the_same_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path)

    def run(command: list[str]) -> None:
        (tmp_path / "peer").mkdir(exist_ok=True)
        commands.append(command)

    monkeypatch.setattr("benchmarks.common.environments.run", run)
    requirements = tmp_path / "peer.requirements.txt"
    requirements.write_text("torch==2.13.0\n")
    assert [environments.make("peer"), environments.make("peer")] == [True, False]
    assert len(commands) == 3
    requirements.write_text("torch==2.13.1\n")
    assert environments.make("peer")
    assert commands[-1][-3:] == ["--no-deps", "--requirement", str(requirements)]
