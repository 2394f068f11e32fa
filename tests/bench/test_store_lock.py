"""The lock between processes: who holds it, who may take it over, who notices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench.errors import RunError
from bench.store import GroupLock
from bench.store import lock as store_lock

ROOT = Path(__file__).parents[2]


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_held_lock_names_its_owner_and_is_released(tmp_path):
    with GroupLock(tmp_path) as lock:
        lock.check()
        where = f"{tmp_path} is being trained by pid {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RunError) as caught, GroupLock(tmp_path):
            pass
        assert where in str(caught.value)
    with GroupLock(tmp_path) as lock:
        assert lock.note is None
    assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(tmp_path):
    code = """
    import os, sys
    from pathlib import Path
    from bench.store import GroupLock
    with GroupLock(Path(sys.argv[1])):
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), 9)
    """
    pid = python(code, tmp_path).stdout.strip()
    assert (tmp_path / "lock").exists()
    with GroupLock(tmp_path) as lock:
        assert f"pid {pid} on" in lock.note and "that process is gone" in lock.note
        lock.check()


def owner(**changes: object) -> str:
    pid = os.getpid()
    me = {"pid": pid, "host": socket.gethostname(), "token": "theirs", "heartbeat": time.time()}
    return json.dumps({**me, "process_start": store_lock._process_start(pid), **changes})


@pytest.mark.parametrize(
    ("content", "stale"),
    [
        (lambda: owner(), False),
        (lambda: owner(host="elsewhere", pid=1), False),
        (lambda: owner(host="elsewhere", pid=1, heartbeat=time.time() - 590), False),
        (lambda: owner(host="elsewhere", pid=1, heartbeat=time.time() - 610), True),
        (lambda: owner(heartbeat=time.time() - 610), True),
        (lambda: owner(process_start="1"), True),  # the pid was given to another process
        (lambda: "", False),  # its maker is between two system calls
    ],
)
def test_which_locks_are_stale(tmp_path, content, stale):
    (tmp_path / "lock").write_text(content())
    if stale:
        with GroupLock(tmp_path) as lock:
            assert "took over" in lock.note
    else:
        with pytest.raises(RunError, match="is being trained by"), GroupLock(tmp_path):
            pass
        assert (tmp_path / "lock").read_text()[:5] == content()[:5]


def test_an_empty_lock_goes_stale_by_its_own_time(tmp_path):
    (tmp_path / "lock").write_text("")
    os.utime(tmp_path / "lock", (time.time() - 700,) * 2)
    with GroupLock(tmp_path) as lock:
        assert "took over" in lock.note


def test_the_owner_that_lost_its_lock_notices_and_leaves_the_new_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(store_lock, "HEARTBEAT_SECONDS", 0.02)
    with GroupLock(tmp_path) as lock:
        (tmp_path / "lock").write_text(owner())
        time.sleep(0.1)
        with pytest.raises(RunError, match="another process took over"):
            lock.check()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "theirs"


def test_the_heartbeat_is_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(store_lock, "HEARTBEAT_SECONDS", 0.02)
    with GroupLock(tmp_path) as lock:
        first = json.loads((tmp_path / "lock").read_text())["heartbeat"]
        deadline = time.time() + 10
        while json.loads((tmp_path / "lock").read_text())["heartbeat"] == first:
            assert time.time() < deadline
            time.sleep(0.01)
        lock.check()


def test_of_many_processes_that_start_at_once_one_gets_a_stale_lock(tmp_path):
    (tmp_path / "lock").write_text(owner(pid=2**22 + 1, process_start=None))
    code = """
    import sys, time
    from pathlib import Path
    from bench.errors import RunError
    from bench.store import GroupLock
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.001)
    try:
        with GroupLock(Path(sys.argv[1])):
            print("got it", flush=True)
            time.sleep(1.5)
    except RunError as error:
        print("held", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    children = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    time.sleep(1.0)
    (tmp_path / "go").touch()
    said = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert said == ["got it"] + ["held"] * 5
