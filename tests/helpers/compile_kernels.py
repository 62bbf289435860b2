"""Compiles the kernels for GPUs that need not be here; prints a line for each: architecture, case, registers, stack, local
memory and loads of 16 bytes."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from distill_lit.losses.kernels.losses import loss_kernel, part_bits
from distill_lit.losses.kernels.metrics import metric_kernel
from distill_lit.losses.kernels.rows import tile_of
from distill_lit.losses.kernels.terms import KernelPart

ARCHITECTURES = (80, 90, 100)
ALIGNED = ("student_ptr", "teacher_ptr", "labels_ptr", "sums_ptr", "num_columns", "student_stride", "teacher_stride")
TYPES = {
    "student_ptr": "*bf16",
    "teacher_ptr": "*bf16",
    "labels_ptr": "*i64",
    "on_policy_ptr": "*i1",
    **dict.fromkeys(("sums_ptr", "weights_ptr", "temperatures_ptr"), "*fp32"),
    **dict.fromkeys(("num_columns", "student_stride", "teacher_stride"), "i32"),
    **dict.fromkeys(("student_scale", "student_softcap", "teacher_scale", "teacher_softcap", "share"), "fp32"),
}
CAPS = {"STUDENT_CAPPED": False, "TEACHER_CAPPED": False}
LOSS = {"SOFTENED": -1, "IS_CONTRASTIVE": False, "IS_CENTERED": False, "HAS_GRADIENT": True, **CAPS}
FORWARD_KL = part_bits(KernelPart.FORWARD_KL)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "forward_kl": (loss_kernel, {**LOSS, "PARTS": FORWARD_KL}),
    "hinton": (loss_kernel, {**LOSS, "PARTS": FORWARD_KL | part_bits(KernelPart.NLL), "SOFTENED": 1}),
    "jensen_shannon": (loss_kernel, {**LOSS, "PARTS": part_bits(*list(KernelPart)[5:7])}),
    "capped": (loss_kernel, {**LOSS, "PARTS": FORWARD_KL, "STUDENT_CAPPED": True, "TEACHER_CAPPED": True}),
    "everything": (loss_kernel, {**LOSS, "PARTS": part_bits(*KernelPart), "SOFTENED": 0, "IS_CONTRASTIVE": True}),
    "metrics": (metric_kernel, {"HAS_TEACHER": True, **CAPS}),
}


def compile_kernel(kernel: Any, constants: dict[str, Any], architecture: int) -> tuple[str, ...]:
    """(registers of a thread, bytes of stack, bytes of local memory, loads of 16 bytes)."""
    tile = tile_of(49152)
    constants = {**constants, "BLOCK": tile["BLOCK"]}
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else TYPES[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": tile["num_warps"]})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    return (*found.groups(), str(len(re.findall(r"ld\.global\S*\.v4", compiled.asm["ptx"]))))


if __name__ == "__main__":
    for architecture in ARCHITECTURES:
        for name, (kernel, constants) in CASES.items():
            print(architecture, name, *compile_kernel(kernel, constants, architecture), flush=True)
