"""Virtual environments of programs whose pins do not fit ours. Standard library only."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from bench.errors import BenchError

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class NotInstalled(BenchError):
    """An environment is missing or cannot be built."""


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_built(folder: Path, requirements: Path) -> bool:
    """Whether the environment holds what the file asks for now."""
    stamp = folder / ".installed"
    return stamp.is_file() and stamp.read_text() == requirements.read_text()


def build(folder: Path, requirements: Path) -> Path:
    """Create or renew an environment and return its interpreter; nothing is done while the
    requirements are unchanged. ``TORCH=cpu`` in the environment takes the CPU build of torch.

    Raises:
        NotInstalled: with pip's last line.
    """
    python = python_of(folder)
    if is_built(folder, requirements):
        return python
    print(f"building {folder.name} (about a minute)", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if os.environ.get("TORCH") == "cpu":
        pip += ["--extra-index-url", CPU_INDEX]
    done = subprocess.run([*pip, "-r", str(requirements)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
        print(done.stderr, file=sys.stderr, end="")
        errors = [line for line in lines if line.startswith("ERROR:")]
        raise NotInstalled((errors or lines)[-1].removeprefix("ERROR: "))
    (folder / ".installed").write_text(requirements.read_text())
    return python
