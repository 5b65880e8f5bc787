"""``python -m kvtool.kernels.triton.compile``: every kernel, compiled ahead of time for GPUs that need not be here.

Prints registers a thread, bytes spilled a thread and bytes of shared memory a program. The exit code is 1 if a
kernel does not compile.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from kvtool.kernels.reference.rans import LOWEST
from kvtool.kernels.triton import wide
from kvtool.kernels.triton.attention import ROWS, SPLIT, TOKENS, attend_split
from kvtool.kernels.triton.dequantize import dequantize_head
from kvtool.kernels.triton.hadamard import hadamard_rows
from kvtool.kernels.triton.jit import BLOCK, OPTIONS, Kernel
from kvtool.kernels.triton.packing import pack_section, unpack_section
from kvtool.kernels.triton.rans import WARPS, decode_block
from kvtool.kernels.triton.rope import rotate_head
from kvtool.kernels.triton.wide import decode_step
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90)


class Build(NamedTuple):
    """A kernel, its arguments' types in order, the values of those that are constants, and a program's warps."""

    kernel: Kernel
    types: str
    constants: dict[str, Any]
    warps: int = 4


# Every kernel, with the constants that a cache meets most.
BUILDS = [
    *(
        Build(kernel, "*u8 *u8 i32 i32", {"SHIFT": shift, "WIDTH": width, "BLOCK": BLOCK})
        for kernel in (pack_section, unpack_section)
        for shift, width in ((0, 4), (0, 2), (2, 1))
    ),
    *(
        Build(
            attend_split,
            f"*{dtype} *{dtype} *{dtype} *i32 *fp32 *i1 *i64 *fp32 *fp32" + 4 * " i32" + " fp32",
            {
                "BIASED": biased,
                **dict.fromkeys(("SIZE", "VALUE_SIZE", "KEY_BLOCK", "VALUE_BLOCK"), size),
                **{"ROWS": ROWS, "TOKENS": TOKENS, "SPLIT": SPLIT},
            },
        )
        for dtype in ("fp32", "bf16")
        for size in (64, 128)
        for biased in (False, True)
    ),
    *(
        Build(dequantize_head, f"*u8 *fp16 *fp16 *{out}" + 7 * " i32", {"AXIS": axis, "BLOCK": BLOCK})
        for out in ("fp32", "bf16")
        for axis in (1, 2)
    ),
    *(
        Build(
            rotate_head,
            f"*{dtype} *fp32 *fp32 *{dtype}" + 8 * " i32",
            {"INTERLEAVED": interleaved, "BLOCK": BLOCK},
        )
        for dtype in ("fp32", "bf16")
        for interleaved in (False, True)
    ),
    *(
        Build(
            hadamard_rows, "*fp32 *fp32 i32 fp32", {"ROWS": BLOCK // n, "N": n, "PASSES": n.bit_length() - 1}
        )
        for n in (64, 128)
    ),
    *(
        Build(
            decode_block,
            "*u8 *i64 *i32 *i32 *u8 *i32" + 4 * " i32",
            {"LOWEST": LOWEST, "PRECISION": precision, "HALVINGS": halvings, "LANES": lanes},
            WARPS,
        )
        for lanes in (4, 32)
        for precision, halvings in ((12, 4), (14, 8))
    ),
    Build(
        decode_step,
        "*u8 *i32 *i32 *i32 *i64 *i32 *i32 *i32 *i64 *i64 *i32 *i64 *i64 *i64 *i32" + 6 * " i32",
        wide.CONSTANTS,
        wide.WARPS,
    ),
]


class Usage(NamedTuple):
    """A kernel's use of a GPU: per thread, and for shared memory per program."""

    registers: int
    spilled: int
    shared: int


def build(wanted: Build, architecture: int) -> Usage:
    """Compile a kernel for one architecture. Raises what triton raises."""
    kernel, types, constants, warps = wanted
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs=constants)
    options = OPTIONS | {"num_warps": warps}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, stack = _resources(made.asm["cubin"])
    return Usage(registers, stack, made.metadata.shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack: no kernel here has arrays of its own, so any bytes there were spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        printed = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    if not found:
        raise RuntimeError(f"{Path(tool).name} printed no resource usage: {printed!r}")
    return int(found[1]), int(found[2])


def main() -> int:
    """Compile and print them all; how many failed."""
    row = "{:<70} {:>6} {:>9} {:>7} {:>6}"
    print(row.format("kernel", "target", "registers", "spilled", "shared"))
    failed = 0
    for wanted in BUILDS:
        pointers = dict.fromkeys(word[1:] for word in wanted.types.split() if word.startswith("*"))
        settings = [f"{name}={value}" for name, value in wanted.constants.items()]
        name = f"{wanted.kernel.__name__} {' '.join([*pointers, *settings])}"
        for architecture in ARCHITECTURES:
            target = f"sm_{architecture}"
            try:
                usage = build(wanted, architecture)
            except Exception as error:
                # Whatever is wrong with one kernel, the others are still worth knowing about.
                failed += 1
                print(row.format(name, target, "failed", "", ""))
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            else:
                print(row.format(name, target, *usage))
    return failed


if __name__ == "__main__":
    sys.exit(main() > 0)
