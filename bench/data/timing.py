"""How long datasets take to load, and in how much memory.

``python -m bench.data.timing REF... [--repeats 3] [--rows N]`` prints a table (Markdown). Every
load is a process of its own; Python's imports come before the clock. Memory is what the process
holds besides files that are mapped (Linux: RssAnon), at most and less what it held before; the
system can drop at any time what is mapped.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

BLOCK = 100_000
WIDTHS = {"observations": 17, "next_observations": 17, "actions": 6}  # of HalfCheetah
COLUMNS = ("file", "transitions", "seconds", "CPU seconds", "memory")
_CHILD = """
import sys
from bench.data.timing import load_once
load_once(sys.argv[1])
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.data.timing", description=__doc__)
    parser.add_argument(
        "refs", nargs="+", metavar="REF", help="ids or paths; or, with --rows, file"
    )
    parser.add_argument("--repeats", type=int, default=3, help="loads of each; medians are shown")
    parser.add_argument("--rows", type=int, help="first write random data of so many rows to REF")
    args = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for ref in args.refs:
        if args.rows:
            generate(Path(ref), args.rows)
        found = [measure(ref) for _ in range(args.repeats)]
        first = found[0]
        wall, cpu, memory = (median(f[key] for f in found) for key in ("wall", "cpu", "memory"))
        print(
            f"| {Path(ref).name} | {first['transitions']:,} | {wall:.2f} | {cpu:.2f} | "
            f"{memory / 1e6:.0f} MB |",
            flush=True,
        )
    return 0


def measure(ref: str, setup: str = "") -> dict[str, Any]:
    """One load in a new process: `wall` and `cpu` seconds, `memory` bytes, `transitions` and the
    `fingerprint`. `setup` is code that runs first."""
    command = [sys.executable, "-c", setup + _CHILD, ref]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()  # imported
        before = most = _anonymous(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        while child.poll() is None:
            most = max(most, _anonymous(child.pid))
            time.sleep(0.005)
        output = child.stdout.read()
    if child.returncode:
        raise RuntimeError(f"{ref}: loading it failed (exit code {child.returncode})")
    return {**json.loads(output), "memory": most - before}


def load_once(ref: str) -> None:
    """What the measured process does."""
    import tensordict  # noqa: F401 (loading would import it)

    from bench.data import load

    warnings.simplefilter("ignore")
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    dataset = load(ref)
    facts: dict[str, Any] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    facts |= {"transitions": len(dataset.transitions), "fingerprint": dataset.fingerprint}
    print(json.dumps(facts))


def generate(path: Path, rows: int) -> None:
    """A file of D4RL's layout, compressed as D4RL's are, with random numbers of HalfCheetah's
    widths and episodes of 1000 steps."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        options = {"compression": "gzip", "chunks": True}
        for key, width in WIDTHS.items():
            file.create_dataset(key, (rows, width), np.float32, **options)
        file.create_dataset("rewards", (rows,), np.float32, **options)
        for key in ("terminals", "timeouts"):
            file.create_dataset(key, (rows,), bool, **options)
        for start in range(0, rows, BLOCK):
            stop = min(start + BLOCK, rows)
            states = rng.normal(size=(stop - start + 1, 17)).astype(np.float32)
            file["observations"][start:stop] = states[:-1]
            file["next_observations"][start:stop] = states[1:]
            file["actions"][start:stop] = rng.uniform(-1, 1, (stop - start, 6))
            file["rewards"][start:stop] = rng.normal(size=stop - start)
            file["timeouts"][start:stop] = np.arange(start + 1, stop + 1) % 1000 == 0


def _anonymous(pid: int) -> int:
    """Bytes of memory that are no file's; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    sys.exit(main())
