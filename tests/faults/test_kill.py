"""kill -9 in the middle of a run, Ctrl-C, and what the same command makes of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from bench.store import load_checkpoint
from tests.bench.runs import bench, command, environment, pendulum_file, results, small_run

STEPS = 400


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data file and the results of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    data = pendulum_file(folder / "data.hdf5")
    done = bench(*small_run(data, folder / "out", steps=STEPS))
    assert done.returncode == 0, done.stderr
    return data, folder / "out"


def _statuses(out: Path) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(out.rglob("status.json"))]


def _step(out: Path) -> int:
    return max((s["step"] for s in _statuses(out)), default=0)


def _start(data: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*small_run(data, out, steps=STEPS)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )


def _wait_for_progress(process: subprocess.Popen[bytes], out: Path, beyond: int) -> None:
    deadline = time.monotonic() + 60
    while _step(out) <= beyond and process.poll() is None:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def _weights(out: Path) -> dict[str, torch.Tensor]:
    (folder,) = out.rglob("checkpoints/seeds-0-1")
    found = load_checkpoint(folder)
    assert found is not None and found[0] == STEPS
    return found[1]


def _assert_same(out: Path, expected: Path) -> None:
    assert results(out) == results(expected)
    ours, theirs = _weights(out), _weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_three_kills_end_bit_equal(straight: tuple[Path, Path], tmp_path: Path) -> None:
    """Catches: rows written twice or lost, noise that depends on when a run was resumed,
    optimizer state left out of the checkpoint."""
    data, expected = straight
    out, rng, reached = tmp_path / "out", random.Random(0), 0
    for _ in range(3):
        process = _start(data, out)
        _wait_for_progress(process, out, reached)
        time.sleep(rng.uniform(0, 0.1))  # somewhere between two checkpoints, or inside one
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        reached = _step(out)
    assert 0 < reached < STEPS
    done = bench(*small_run(data, out, steps=STEPS))
    assert done.returncode == 0, done.stderr
    assert [s["state"] for s in _statuses(out)] == ["done", "done"]
    _assert_same(out, expected)


def test_interrupt_leaves_a_run_that_goes_on(straight: tuple[Path, Path], tmp_path: Path) -> None:
    data, expected = straight
    out = tmp_path / "out"
    process = _start(data, out)
    _wait_for_progress(process, out, 0)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    stopped = _statuses(out)
    assert {s["state"] for s in stopped} == {"killed"}
    assert 0 < stopped[0]["step"] < STEPS
    assert bench(*small_run(data, out, steps=STEPS)).returncode == 0
    _assert_same(out, expected)


def test_finished_runs_are_skipped_and_longer_ones_go_on(
    straight: tuple[Path, Path], tmp_path: Path
) -> None:
    data, expected = straight
    out = tmp_path / "out"
    assert bench(*small_run(data, out, steps=STEPS // 2)).returncode == 0
    again = bench(*small_run(data, out, steps=STEPS // 2))
    assert "0 runs to train, 2 finished already" in again.stderr
    assert bench(*small_run(data, out, steps=STEPS)).returncode == 0
    _assert_same(out, expected)
