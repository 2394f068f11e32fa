"""What the machine is, and how fast it multiplies matrices: ``python -m bench.perf.machine``.

Run in a process of its own, because the fast matrix path is a setting of the whole process.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

_SIZE, _TIMES = {"cpu": 2048, "cuda": 8192}, 7


def probe(device: str, env: Mapping[str, str]) -> dict[str, Any]:
    """:func:`facts` from a fresh process."""
    command = [sys.executable, "-m", "bench.perf.machine", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=dict(env), check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def facts(device: str) -> dict[str, Any]:
    """The machine by name, with ``peaks`` in FLOP/s of float32 products; ``peak`` is the fastest
    that still computes in float32."""
    import torch

    from bench.engine import cpu

    torch.set_num_threads(1)
    peaks = _cuda_peaks() if device == "cuda" else _cpu_peaks()
    return {
        "cpu": cpu.model_name(),
        "cores": _cores(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "peaks": peaks,
        "peak": peaks["float32"] if device == "cuda" else max(peaks.values()),
    }


def _cpu_peaks() -> dict[str, float]:
    from bench.engine import cpu

    peaks = {"torch's default": _best("cpu", time.process_time)}
    if cpu.use_fast_matmul():
        peaks["oneDNN"] = _best("cpu", time.process_time)
    return peaks


def _cuda_peaks() -> dict[str, float]:
    import torch

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    peaks = {"float32": _best("cuda", now)}
    torch.backends.cuda.matmul.allow_tf32 = True
    peaks["TF32"] = _best("cuda", now)
    return peaks


def _best(device: str, now: Callable[[], float]) -> float:
    """FLOP/s of the fastest of several square products, the first left out."""
    import torch

    n = _SIZE[device]
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    times = []
    for _ in range(_TIMES + 1):
        start = now()
        a @ b
        times.append(now() - start)
    return 2 * n**3 / min(times[1:])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # those this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def slug(machine: Mapping[str, Any]) -> str:
    """The machine's name as part of a file name."""
    name = re.sub(r"\((R|TM)\)", "", machine["gpu"] or machine["cpu"])
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1])))
