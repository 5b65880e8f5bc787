"""Makes a golden artifact for every stage version that has none yet: ``python tests/golden/make.py``.

Each file holds a stage's configuration and spec, what it wrote (``y.*``), and what that decodes to (``x.*``).
Files are kept for ever and never written again: what has been written once must stay readable.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kvtool.codecs import Array, Spec, Stage, container, stages

HERE = Path(__file__).parent


def settings(cls: type[Stage]) -> list[Stage]:
    """Configurations worth keeping: the defaults but for what a small input does not reach."""
    if cls.name == "group":
        fields = {"group": 4, "recent": 3}
        return [cls(**fields), cls(**fields, bits=5, axis="channel")]  # type: ignore[call-arg]
    return [cls()]


def sample(stage: Stage) -> tuple[Spec, dict[str, torch.Tensor]]:
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
    return Spec(arrays), tensors


def write(stage: Stage, path: Path) -> None:
    spec, payload = sample(stage)
    encoded = stage.encode(payload, spec)
    decoded = stage.decode(encoded, spec)
    tensors = {f"y.{n}": t for n, t in encoded.items()} | {f"x.{n}": t for n, t in decoded.items()}
    described = {
        "stage": stage.to_config(),
        "levels": {name: array.levels for name, array in spec.arrays.items()},
    }
    placed = container.layout(container.entries(tensors))
    with path.open("xb") as file:
        file.write(container.header(placed, {"golden": json.dumps(described)}))
        for name, entry in placed.items():
            file.write(
                container.raw_bytes(tensors[name]) if name in tensors else bytes(container.nbytes(entry))
            )
    print(path.name)


def main() -> None:
    for (name, version), cls in sorted(stages().items()):
        for number, stage in enumerate(settings(cls)):
            path = HERE / f"{cls.kind}-{name}-v{version}-{number}.safetensors"
            if path.exists():
                print(f"{path.name} is kept")
            else:
                write(stage, path)


if __name__ == "__main__":
    main()
