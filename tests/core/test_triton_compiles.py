"""The CUDA kernels compile for cards that are not there: what Triton's interpreter cannot tell."""

import os
import re
import subprocess
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets, and does not compile", allow_module_level=True)

pytestmark = pytest.mark.slow

_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
    torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # of one program, compute capabilities 8.0 and 9.0


def compiled(kernel: Any, capability: int, arguments: dict[str, object]) -> Any:
    """What Triton makes of a kernel called with these arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants = {}, {}
    for position, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):  # Triton compiles for strides of 1 apart
            signature[parameter.name] = "constexpr"
            constants[(position,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def spilled_bytes(cubin: bytes, folder: Path) -> int:
    """What a compiled kernel keeps in memory for want of registers."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return max(int(size) for size in re.findall(r"STACK:(\d+)", usage))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("num_classes", [1, 2, 19, 150, 256, 300])
def test_every_kernel_compiles_and_fits_the_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int, dtype: torch.dtype, num_classes: int
) -> None:
    from blda_cli.core.kernels import triton_kernels

    launched = []

    def launch(kernel: Any, block: int, logits: Tensor, *arguments: object, **options: object) -> None:
        size = {"C": logits.shape[1], "pixels": logits.shape[2], "BLOCK": block}
        others = [one.name for one in kernel.params if one.name not in size]
        given = [logits, *logits.stride(), *arguments]
        made = compiled(kernel, capability, dict(zip(others, given, strict=True)) | size)
        assert made.metadata.shared <= _SHARED_MEMORY[capability]
        assert spilled_bytes(made.asm["cubin"], tmp_path) <= 64  # a few words cost nothing
        launched.append(kernel)

    monkeypatch.setattr(triton_kernels, "_launch", launch)
    call_every_kernel(triton_kernels, torch.zeros(1, num_classes, 5000, dtype=dtype))
    assert len(launched) == 6


def call_every_kernel(kernels: ModuleType, logits: Tensor) -> None:
    num_classes = logits.shape[1]
    counts = torch.zeros(num_classes, num_classes, 8, dtype=torch.float64)
    kernels.argmax(logits)
    kernels.align_offset(logits, torch.zeros(num_classes))
    kernels.align_location(logits, torch.zeros(num_classes, num_classes))
    kernels.align_quantile(logits, torch.ones(num_classes, 8, -(-num_classes // 4) * 4), 16.0)
    kernels.count_cells(counts, logits, torch.zeros(1, 5000, dtype=torch.uint8), 16.0)
    kernels.count_cells_soft(counts, logits, 16.0)
