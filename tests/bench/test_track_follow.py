"""Following a training process: outages, kills, and fresh stores opened together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from bench.track import Follower, MirrorError, sync
from bench.track import follow as track_follow
from bench.track import mirror as track_mirror
from tests.bench.mirror_tools import database, expected, key, mirrored, out
from tests.bench.report_runs import make_run

__all__ = ["database", "out"]  # fixtures

pytestmark = pytest.mark.filterwarnings("default")  # mlflow's dependencies warn as they please

ROOT = Path(__file__).parents[2]


def test_an_outage_is_said_once_met_with_patience_and_made_up_for(capsys, monkeypatch, tmp_path):
    mirror = track_mirror.Mirror(tmp_path)
    outcomes: list[Any] = [MirrorError("down")] * 3 + [track_mirror.SyncReport("u", 1, 2, 3)] * 2
    pauses: list[float] = []

    def pass_() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def stop(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 4

    monkeypatch.setattr(mirror, "sync", pass_)
    total = track_follow.follow_until(mirror, stop)
    assert pauses == [10.0, 20.0, 40.0, 5.0]
    assert (total.runs, total.created, total.metrics) == (1, 4, 6)
    said = capsys.readouterr().err
    assert said.count("warning: down") == 1 and said.count("is back") == 1


def test_the_follower_sends_what_training_writes_and_ends_with_it(out):
    with Follower(out) as follower:
        run = make_run(out, state="running")
        run.set_status("done", step=10_000)
        process = follower._process
        assert process is not None and process.poll() is None
    assert process.returncode == 0
    assert mirrored(out)[key(out, run)]["metrics"] == expected(run, 10_000)


def test_the_follower_finds_the_package_wherever_it_is_started(out, monkeypatch):
    """Not installed, from another folder: the checkout's root comes first, not bench/ itself,
    whose modules would stand in for others of their names."""
    seen: dict[str, Any] = {}

    def popen(command: list[str], **options: Any) -> Any:
        seen.update(options)
        raise OSError("enough")

    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(track_follow.subprocess, "Popen", popen)
    Follower(out).start()
    assert seen["env"]["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]


def test_a_killed_trainer_leaves_no_follower_behind(out):
    make_run(out)
    code = """
    import os, sys, time
    from pathlib import Path
    from bench.track import Follower
    follower = Follower(Path(sys.argv[1])).__enter__()
    print(follower._process.pid, flush=True)
    time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(out)]
    trainer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pid = int(trainer.stdout.readline())
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.time() + 30
    while alive(pid):
        assert time.time() < deadline, os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    assert len(mirrored(out)) == 2  # its last act


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_dead_server_costs_training_nothing(out, capfd):
    make_run(out)
    start = time.monotonic()
    with Follower(out, "http://127.0.0.1:9", patience=0.2):
        assert time.monotonic() - start < 1.0
        time.sleep(0.5)
    assert time.monotonic() - start < 5.0
    assert "`bench sync` will send the rest" in capfd.readouterr().err


def test_fresh_stores_opened_by_several_processes_at_once(tmp_path):
    """The trap this guards: together they would all crash in the migrations."""
    out = tmp_path / "fresh folder"
    make_run(out)
    code = "import sys, pathlib, bench.track; bench.track.sync(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    children = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert said == ["", ""]  # and no chatter
    assert len(mirrored(out)) == 2


def test_configs_are_read_only(out):
    run = make_run(out)
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    sync(out)
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before
    assert json.loads((run.path / "config.json").read_text())["seed"] == 0
