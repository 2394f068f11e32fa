"""`make parity`: the losses against torchrl's, in an environment of their own.

torchrl needs a tensordict older than ours, so `.venv-parity` is built beside `.venv` from
requirements.txt. The comparisons run there, then the cost of an update (overhead.py), whose bounds
the last argument can leave out: `python tests/parity/run.py --no-overhead`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.perf.environments import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-parity"


def main(args: list[str]) -> int:
    python = build(ENVIRONMENT, HERE / "requirements.txt")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    tests = [python, "-m", "pytest", "-q", "-m", "parity", "-n", "2", "tests/parity"]
    code = subprocess.run(tests, cwd=ROOT, env=env).returncode
    if code == 0 and "--no-overhead" not in args:
        overhead = [python, HERE / "overhead.py", "--at-most", "0.5"]
        code = subprocess.run(overhead, cwd=ROOT, env=env).returncode
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
