"""Start-up settings of a training process on the CPU: a fast gemm path, and no page faults.

Both are process-wide, so they are made once, by the process that trains and nothing else.
"""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD = -3, -1, -2
_TOLERANCE = 2e-3  # float32 products of 256 terms agree to 1e-4; bfloat16 ones differ by 1e-1


def keep_freed_memory() -> bool:
    """Stop glibc from returning activation buffers to the system after every update."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 28))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def use_fast_matmul() -> bool:
    """Send float32 products to oneDNN, which uses AVX-512 on every make of CPU.

    Kept only where a product still has float32 accuracy: on CPUs with AMX the same switch may
    mean bfloat16.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    if float((a @ b - exact).abs().max()) < _TOLERANCE:
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def model_name() -> str:
    """The CPU's name where the system tells it: floating point differs between models."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
            return next(names, platform.machine())
    except OSError:
        return platform.machine()


def prepare(threads: int = 1) -> dict[str, bool | int | str]:
    """Set up this process for training on the CPU and say what was done."""
    torch.set_num_threads(threads)
    return {
        "model": model_name(),
        "threads": threads,
        "memory_kept": keep_freed_memory(),
        "onednn_matmul": use_fast_matmul(),
    }
