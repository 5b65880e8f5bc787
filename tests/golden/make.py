"""Makes a golden artifact for every stage version that has none yet: ``python tests/golden/make.py``.

Each file holds a stage's configuration and spec, what it wrote (``y.*``), and what that decodes to (``x.*``).
The calibration of a stage that holds one lies in ``calibrations``. Files are kept for ever and never written again:
what has been written once must stay readable.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kvtool.codecs import Array, CodecError, Place, Rope, Spec, Stage, stages
from kvtool.codecs.format import container
from kvtool.store.calibrations import Calibrations

HERE = Path(__file__).parent


def sample(stage: Stage) -> tuple[Spec, dict[str, torch.Tensor]]:
    """A payload that the stage accepts, of one layer or else of two, and what it needs beyond."""
    generator = torch.Generator().manual_seed(20)
    shape = (2, 13, 6)
    tensors = {"x": torch.randn(shape, generator=generator)}
    arrays = {"x": Array(shape, torch.float32)}
    if stage.kind == "entropy":
        for levels in (2, 4, 7, 32, 64, 100):
            codes = torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator)
            # Mostly zeros, so that compression is reached too.
            tensors[f"codes{levels}"] = codes * (codes > levels // 2)
            arrays[f"codes{levels}"] = Array(shape, torch.uint8, levels=levels)
        tensors["half"] = torch.ones(40, dtype=torch.bfloat16)
        arrays["half"] = Array((40,), torch.bfloat16)
        tensors["codes"] = (torch.randn(shape[1:], generator=generator) ** 5).to(torch.int16)
        arrays["codes"] = Array(shape[1:], torch.int16)
        tensors["exponents"] = torch.randint(24, 41, shape[1:2], generator=generator).to(torch.uint8)
        arrays["exponents"] = Array(shape[1:2], torch.uint8)
    rope = Rope((1.0, 0.25, 0.0625))
    spec = Spec(arrays, place=Place(2, 1, 4, (rope,)))
    needed = {
        "positions": torch.arange(7, 20),
        "token_ids": torch.arange(3, 16),
        "importance": torch.linspace(0.1, 2, 13),
        "attention": torch.rand(shape[:2], generator=generator),
        "queries": torch.randn(4, 5, 6, generator=generator),
        "window_queries": torch.randn(4, 5, 6, generator=generator),
    }
    try:
        stage.plan(spec)
    except CodecError:
        shape = (2, *shape)  # type: ignore[assignment]
        tensors = {"x": torch.randn(shape, generator=generator)}
        spec = Spec({"x": Array(shape, torch.float32)}, place=Place(2, 2, 4, (rope, rope)))
        needed = {name: torch.stack([tensor, tensor]) for name, tensor in needed.items()}
    return spec, tensors | {name: needed[name] for name in stage.needs}


def write(stage: Stage, path: Path) -> None:
    spec, payload = sample(stage)
    encoded = stage.encode(payload, spec)
    known = {name: payload[name] for name in stage.needs & {"positions", "token_ids"}}
    decoded = stage.decode({**encoded, **known}, spec)
    tensors = {f"y.{n}": t for n, t in encoded.items()} | {f"x.{n}": t for n, t in decoded.items()}
    tensors |= {f"given.{n}": t for n, t in known.items()}
    described = {
        "place": {
            "first": spec.place.first,
            "count": spec.place.count,
            "total": spec.place.total,
            "ropes": [rope.to_json() for rope in spec.place.ropes],
        },
        "stage": stage.to_config(),
        "levels": {name: array.levels for name, array in spec.arrays.items()},
    }
    for calibration in stage.calibrations:
        Calibrations(HERE / "calibrations").put(calibration)
    with path.open("xb") as file:
        file.write(container.to_bytes(tensors, {"golden": json.dumps(described)}))
    print(path.name)


def main() -> None:
    for (name, version), cls in sorted(stages().items()):
        for number, stage in enumerate(cls.examples()):
            path = HERE / f"{cls.kind}-{name}-v{version}-{number}.safetensors"
            if path.exists():
                print(f"{path.name} is kept")
            else:
                write(stage, path)


if __name__ == "__main__":
    main()
