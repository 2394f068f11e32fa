"""`make parity`: the losses against torchrl's, in an environment of their own.

torchrl needs a tensordict older than ours, so `.venv-parity` is built beside `.venv` from
requirements.txt. The comparisons run there, then the cost of an update (overhead.py), whose bounds
the last argument can leave out: `python tests/parity/run.py --no-overhead`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-parity"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build() -> None:
    """Create or renew the environment; does nothing while requirements.txt is unchanged."""
    wanted = (HERE / "requirements.txt").read_text()
    stamp = ENVIRONMENT / ".installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print("building .venv-parity with torchrl (about a minute)", flush=True)
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "-q"]
    if os.environ.get("TORCH") == "cpu":
        pip += ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    subprocess.run([*pip, "-r", HERE / "requirements.txt"], check=True)
    stamp.write_text(wanted)


def main(args: list[str]) -> int:
    build()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    tests = [PYTHON, "-m", "pytest", "-q", "-m", "parity", "-n", "2", "tests/parity"]
    code = subprocess.run(tests, cwd=ROOT, env=env).returncode
    if code == 0 and "--no-overhead" not in args:
        overhead = [PYTHON, HERE / "overhead.py", "--at-most", "0.5"]
        code = subprocess.run(overhead, cwd=ROOT, env=env).returncode
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
