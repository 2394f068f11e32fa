"""Runs the command line on a small Pendulum file, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.data import Raw, to_transitions, write_flat

ROOT = Path(__file__).resolve().parents[2]


def pendulum_file(path: Path, rows: int = 400) -> Path:
    """Random Pendulum-shaped data: episodes of 40 steps, all truncated."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(-np.pi, np.pi, rows + 1)
    observations = np.stack([np.cos(angle), np.sin(angle), rng.normal(size=rows + 1)], 1)
    timeouts = (np.arange(rows) % 40) == 39
    raw = Raw(
        source="test",
        observations=observations[:-1].astype(np.float32),
        next_observations=observations[1:].astype(np.float32),
        actions=rng.uniform(-2, 2, (rows, 1)).astype(np.float32),
        rewards=-rng.random(rows).astype(np.float32),
        terminated=np.zeros(rows, dtype=bool),
        truncated=timeouts,
    )
    transitions, _, _ = to_transitions(raw)
    write_flat(path, transitions, env_id="Pendulum-v1")
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "bench", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def bench(*words: object, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run ``bench`` to its end."""
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def small_run(data: Path, out: Path, algo: str = "td3_bc", steps: int = 60) -> list[object]:
    """Arguments of a run that takes seconds."""
    words: list[object] = ["run", "--algo", algo, "--dataset", data, "--out", out]
    words += ["--no-mlflow", "--no-report"]
    words += ["--seeds", 2, "--workers", 1, "--steps", steps, "--eval-interval", 20]
    return [*words, "--eval-episodes", 1, "--set", "hidden=8,8", "batch_size=16"]


def results(out: Path) -> dict[str, bytes]:
    """Scores and metrics of every run, byte for byte."""
    found = sorted((out / "runs").rglob("*.csv"))
    return {str(p.relative_to(out)): p.read_bytes() for p in found}
