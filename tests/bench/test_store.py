"""Run folders, checkpoints and locks under kills, damage and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from bench.errors import RunError
from bench.store import (
    GroupLock,
    RunFolder,
    atomic_write,
    config_hash,
    iter_runs,
    load_checkpoint,
    save_checkpoint,
)
from bench.store import files as store_files
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


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "lite/hopper/medium-v0", "td3_bc", "0123456789ab", 3)


# -- files ---------------------------------------------------------------------------------------


def test_atomic_write_keeps_the_old_content_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_files.os, "fsync", full)
    with pytest.raises(RunError, match=r"a\.json: cannot write 3 bytes \(ENOSPC No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_atomic_write_never_shows_half_a_file(tmp_path):
    """A process killed at random while it rewrites one file leaves version k, never a mixture."""
    path = tmp_path / "big"
    code = """
    import sys
    from pathlib import Path
    from bench.store import atomic_write
    k = 0
    while True:
        atomic_write(Path(sys.argv[1]), bytes([k % 251]) * 1_000_000)
        k += 1
    """
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path)], cwd=ROOT)
        deadline = time.time() + 30
        while not path.exists() and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0.02, 0.2))
        child.kill()
        child.wait()
        content = path.read_bytes()
        assert len(content) == 1_000_000 and len(set(content)) == 1


def test_config_hash_is_fixed_and_ignores_key_order():
    # printf '{"a":1,"b":[2.5,null]}' | sha256sum
    assert config_hash({"b": [2.5, None], "a": 1}) == "fbb68c4db7e0"
    assert config_hash({"a": 1, "b": (2.5, None)}) == "fbb68c4db7e0"
    assert config_hash({"a": 2, "b": [2.5, None]}) != "fbb68c4db7e0"


# -- run folders ---------------------------------------------------------------------------------


def test_path_is_the_documented_one(run, tmp_path):
    where = "runs/lite/hopper/medium-v0/td3_bc/0123456789ab/seed-3"
    assert run.path == tmp_path / where


@pytest.mark.parametrize("name", ["../x", "/etc", "", "a//b", "a/./b", "."])
def test_names_cannot_leave_the_results_folder(tmp_path, name):
    with pytest.raises(RunError, match="cannot name a folder"):
        RunFolder(tmp_path, name, "a", "c", 0)
    with pytest.raises(RunError, match="cannot name a folder"):
        RunFolder(tmp_path, "d", name, "c", 0)


def test_rows_are_written_as_documented_and_read_back_bit_equal(run):
    run.append_metrics([(1, "loss/q", 0.1), (2, "loss/q", math.pi)])
    run.append_metrics([(2, "grad", float("nan"))])
    run.append_scores([(2, 0, -1.5, 100, 12.25), (2, 1, 1 / 3, 7, None)])
    metrics = (run.path / "metrics.csv").read_text()
    assert metrics == f"step,name,value\n1,loss/q,0.1\n2,loss/q,{math.pi!r}\n2,grad,nan\n"
    scores = (run.path / "scores.csv").read_text()
    assert scores == (
        "step,episode,return,length,normalized_score\n"
        "2,0,-1.5,100,12.25\n2,1,0.3333333333333333,7,\n"
    )


@pytest.mark.parametrize("name", ["", "a,b", 'a"b', "a\nb"])
def test_a_metric_name_that_would_break_the_file_is_refused(run, name):
    with pytest.raises(ValueError, match="one CSV field"):
        run.append_metrics([(1, name, 0.0)])


def test_truncate_drops_later_rows_and_a_torn_line(run):
    run.append_metrics([(10, "a", 1.0), (20, "a", 2.0), (30, "a", 3.0)])
    run.append_scores([(20, 0, 1.0, 5, None), (30, 0, 2.0, 5, None)])
    with open(run.path / "metrics.csv", "a") as file:
        file.write("20,a,9")  # a durable step, but torn: the 9 may have been 99.5
    (run.path / ".tmp-status.json-dead").write_text("{")
    run.truncate_after(20)
    assert (run.path / "metrics.csv").read_text() == "step,name,value\n10,a,1.0\n20,a,2.0\n"
    assert (run.path / "scores.csv").read_text().splitlines()[1:] == ["20,0,1.0,5,"]
    assert not list(run.path.glob(".tmp-*"))


def test_truncate_then_append_equals_the_uninterrupted_file(run, tmp_path):
    rows = [(s, "loss", s / 7) for s in range(1, 200)]
    whole = RunFolder(tmp_path, "d", "whole", "c", 0)
    whole.append_metrics(rows)
    run.append_metrics(rows[:150])
    run.truncate_after(100)
    run.append_metrics(rows[100:])
    assert (run.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()


def test_every_torn_length_of_the_last_row_is_dropped(run):
    run.append_metrics([(1, "a", 0.5)])
    path = run.path / "metrics.csv"
    good = path.read_bytes()
    row = b"2,b,0.25\n"
    for cut in range(len(row)):
        path.write_bytes(good + row[:cut])
        run.truncate_after(99)
        assert path.read_bytes() == good, cut


def test_append_after_a_torn_line_does_not_glue_rows_together(run):
    run.append_metrics([(1, "a", 0.5)])
    with open(run.path / "metrics.csv", "a") as file:
        file.write("2,b")
    run.append_metrics([(3, "c", 1.0)])
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,name,value", "1,a,0.5", "3,c,1.0"]


def test_append_to_a_torn_header_starts_again(run):
    run.path.mkdir(parents=True)
    (run.path / "metrics.csv").write_text("step,na")
    run.append_metrics([(3, "c", 1.0)])
    assert (run.path / "metrics.csv").read_text() == "step,name,value\n3,c,1.0\n"


def test_damage_among_the_durable_rows_is_an_error_and_behind_them_is_dropped(run):
    run.append_metrics([(1, "a", 0.5)])
    path = run.path / "metrics.csv"
    with open(path, "ab") as file:
        file.write(b"\0\0\0\n5,a,1.0\n")
    run.truncate_after(4)
    assert path.read_text() == "step,name,value\n1,a,0.5\n"
    with open(path, "ab") as file:
        file.write(b"\0\0\0\n5,a,1.0\n")
    with pytest.raises(RunError, match=r"metrics\.csv: line 3 is damaged"):
        run.truncate_after(5)


def test_a_full_disk_while_appending_names_the_file(run):
    """A real refusal by the kernel (file size limit), in a process of its own."""
    code = """
    import resource, signal, sys
    from pathlib import Path
    from bench.errors import RunError
    from bench.store import RunFolder
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = RunFolder(Path(sys.argv[1]), "d", "a", "c", 0)
    run.append_metrics([(1, "a", 0.5)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        run.append_metrics([(2, "a", 0.5)] * 1000)
    except RunError as error:
        print(error)
    """
    result = python(code, run.path)
    assert "metrics.csv: cannot write 8000 bytes (EFBIG" in result.stdout, result.stderr


def test_status_merges_and_a_reason_ends_with_its_state(run):
    assert run.status() is None
    run.set_status("running", steps=100)
    started = run.status()["started"]
    run.set_status("failed", reason="CUDA out of memory", step=50)
    assert run.status()["reason"] == "CUDA out of memory"
    run.set_status("running")
    status = run.status()
    assert status["reason"] is None
    assert (status["state"], status["step"], status["steps"]) == ("running", 50, 100)
    assert status["started"] == started <= status["updated"]


def test_status_refuses_an_unknown_state(run):
    with pytest.raises(ValueError, match="'finished'"):
        run.set_status("finished")


def test_a_damaged_status_is_one_line(run):
    run.path.mkdir(parents=True)
    (run.path / "status.json").write_text('{"state": "run')
    with pytest.raises(RunError, match=r"status\.json: not readable as JSON"):
        run.status()


def test_the_rows_are_made_durable_before_the_step_is_claimed(run, monkeypatch):
    run.append_metrics([(1, "a", 0.5)])
    order = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append("replace"), real_replace(a, b))[1]
    )
    run.set_status("running", step=1)
    assert order.index("metrics.csv") < order.index("replace")


CONFIG = {"algorithm": "td3_bc", "hyperparameters": {"alpha": 2.5}, "git_commit": "a", "device": 1}


def test_write_config_refuses_a_different_one_and_accepts_the_same(run):
    run.write_config({**CONFIG, "reference": (1.0, 2.0)})
    before = (run.path / "config.json").read_bytes()
    run.write_config({**CONFIG, "reference": [1.0, 2.0]})  # JSON knows lists only
    assert (run.path / "config.json").read_bytes() == before
    with pytest.raises(RunError, match=r"config\.json: 'hyperparameters' is .*2\.5.*3\.0"):
        run.write_config({**CONFIG, "reference": [1.0, 2.0], "hyperparameters": {"alpha": 3.0}})
    with pytest.raises(RunError, match="'profile' is None there and 'quick' in this run"):
        run.write_config({**CONFIG, "reference": [1.0, 2.0], "profile": "quick"})
    assert (run.path / "config.json").read_bytes() == before


def test_a_resume_with_another_commit_is_recorded_once(run):
    run.write_config(CONFIG)
    for _ in range(2):
        run.write_config({**CONFIG, "git_commit": "b"})
    config = json.loads((run.path / "config.json").read_text())
    assert config["git_commit"] == "a"
    assert config["resumed_with"] == [{"device": 1, "git_commit": "b", "versions": None}]


def test_iter_runs_finds_every_seed_and_nothing_else(tmp_path):
    for dataset, seed in [
        ("lite/b/x-v0", 10),
        ("lite/b/x-v0", 2),
        ("a", 0),
        ("online/seed-env", 1),
    ]:
        RunFolder(tmp_path, dataset, "td3", "c", seed).set_status("running")
    save_checkpoint(tmp_path / "runs/a/td3/c/checkpoints/seed-0", 1, {}, {})
    (tmp_path / "runs/a/td3/c/seed-x").mkdir()
    found = [p.relative_to(tmp_path / "runs").as_posix() for p in iter_runs(tmp_path)]
    assert found == [
        "a/td3/c/seed-0",
        "lite/b/x-v0/td3/c/seed-2",
        "lite/b/x-v0/td3/c/seed-10",
        "online/seed-env/td3/c/seed-1",
    ]
    assert list(iter_runs(tmp_path / "nothing")) == []


def test_run_folders_need_no_torch():
    code = """
    import sys
    import bench.store
    print([m for m in ("torch", "numpy", "pandas", "mlflow") if m in sys.modules])
    """
    assert python(code).stdout.strip() == "[]"


# -- checkpoints ---------------------------------------------------------------------------------


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "actor.weight": torch.randn(3, 40, 20, generator=generator),
        "steps": torch.full((3,), step),
        "rng": generator.get_state(),
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def steps_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip_and_the_last_two_are_kept(tmp_path):
    folder = tmp_path / "checkpoints" / "seeds-0-1-2"
    assert load_checkpoint(folder) is None
    for step in (0, 1000, 2000, 123456789):
        save_checkpoint(folder, step, tensors(step), {"seeds": [0, 1, 2], "lr": 0.1})
        step_read, read, meta = load_checkpoint(folder)
        assert step_read == step and same(read, tensors(step))
        assert meta == {"seeds": [0, 1, 2], "lr": 0.1}
    assert steps_in(folder) == ["step-00002000", "step-123456789"]


def test_a_checkpoint_reads_back_identically_in_sha256sum(tmp_path):
    """The hash taken while writing is the hash of what is on disk, and a standard tool agrees."""
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    save_checkpoint(tmp_path, 5, tensors(5), {})
    where = tmp_path / "step-00000005"
    subprocess.run(["sha256sum", "-c", "--strict", "manifest.sha256"], cwd=where, check=True)


def test_a_small_view_does_not_write_its_whole_storage(tmp_path):
    big = torch.zeros(1_000_000)
    param = torch.nn.Parameter(torch.ones(4))
    save_checkpoint(tmp_path, 1, {"view": big[10:20], "param": param}, {})
    assert (tmp_path / "step-00000001" / "tensors.pt").stat().st_size < 10_000
    _, read, _ = load_checkpoint(tmp_path)
    assert torch.equal(read["view"], big[10:20]) and not read["param"].requires_grad


def flip_bit(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def test_200_random_bit_flips_are_all_detected(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {"seeds": [0]})
    where = tmp_path / "step-00000001"
    rng = random.Random(0)
    for _ in range(200):
        path = where / rng.choice(["tensors.pt", "tensors.pt", "meta.json", "manifest.sha256"])
        place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip_bit(path, place, bit)
        with pytest.raises(RunError, match="no checkpoint can be used"):
            load_checkpoint(tmp_path)
        flip_bit(path, place, bit)
    assert same(load_checkpoint(tmp_path)[1], tensors(1))


@pytest.mark.parametrize("name", ["tensors.pt", "meta.json", "manifest.sha256"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, name, damage):
    save_checkpoint(tmp_path, 1, tensors(1), {})
    save_checkpoint(tmp_path, 2, tensors(2), {})
    path = tmp_path / "step-00000002" / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1 if damage == "truncated" else 0)
    with pytest.warns(UserWarning, match=r"step-00000002.*going on from step-00000001"):
        step, read, _ = load_checkpoint(tmp_path)
    assert step == 1 and same(read, tensors(1))
    (tmp_path / "step-00000001" / name).write_bytes(b"x")
    with pytest.raises(RunError, match="no checkpoint can be used") as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_copied_under_another_step_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {})
    os.rename(tmp_path / "step-00000001", tmp_path / "step-00000009")
    with pytest.raises(RunError, match="holds step 1"):
        load_checkpoint(tmp_path)


def test_after_a_fallback_the_given_up_future_is_removed(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step * 10, tensors(step), {})
    flip_bit(tmp_path / "step-00000030" / "tensors.pt", 100, 0)
    with pytest.warns(UserWarning):
        assert load_checkpoint(tmp_path)[0] == 20
    save_checkpoint(tmp_path, 25, tensors(25), {})
    assert load_checkpoint(tmp_path)[0] == 25
    assert steps_in(tmp_path) == ["step-00000020", "step-00000025"]


def test_leftovers_of_a_killed_save_are_ignored_and_cleaned(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {})
    leftover = tmp_path / ".tmp-step-00000002-dead"
    shutil.copytree(tmp_path / "step-00000001", leftover)
    (leftover / "manifest.sha256").unlink()
    assert load_checkpoint(tmp_path)[0] == 1
    save_checkpoint(tmp_path, 2, tensors(2), {})
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


def test_saving_a_step_again_survives_a_kill_between_the_two_renames(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), {"n": 1})
    save_checkpoint(tmp_path, 1, tensors(1), {"n": 2})
    assert load_checkpoint(tmp_path)[2] == {"n": 2} and steps_in(tmp_path) == ["step-00000001"]
    os.rename(tmp_path / "step-00000001", tmp_path / ".old-step-00000001")
    assert load_checkpoint(tmp_path)[2] == {"n": 2}
    save_checkpoint(tmp_path, 2, tensors(2), {})
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


def test_killed_at_random_the_newest_checkpoint_is_always_whole(tmp_path):
    code = """
    import sys, torch
    from pathlib import Path
    from bench.store import save_checkpoint
    folder = Path(sys.argv[1])
    k = 1
    while True:
        save_checkpoint(folder, k, {"x": torch.full((200_000,), k)}, {"k": k})
        k += 1
    """
    for _ in range(3):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "c")], cwd=ROOT
        )
        deadline = time.time() + 60
        while not (tmp_path / "c" / "step-00000003").exists() and time.time() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.1))
        child.kill()
        child.wait()
        step, read, meta = load_checkpoint(tmp_path / "c")
        assert meta == {"k": step} and set(read["x"].tolist()) == {step}


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """A real refusal by the kernel in the middle of tensors.pt, in a process of its own."""
    code = """
    import resource, signal, sys, torch
    from pathlib import Path
    from bench.errors import RunError
    from bench.store import save_checkpoint
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    save_checkpoint(folder, 1, {"x": torch.arange(10)}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(folder, 2, {"x": torch.zeros(1_000_000)}, {})
    except RunError as error:
        print(error)
    """
    result = python(code, tmp_path)
    assert "step-00000002: cannot write 40000" in result.stdout, result.stdout + result.stderr
    assert "EFBIG" in result.stdout
    assert steps_in(tmp_path) == ["step-00000001"]
    assert torch.equal(load_checkpoint(tmp_path)[1]["x"], torch.arange(10))


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_pickle_with_a_valid_manifest_does_not_run(tmp_path, writer):
    import hashlib

    save_checkpoint(tmp_path / "c", 1, tensors(1), {})
    where, evil = tmp_path / "c" / "step-00000001", tmp_path / "executed"
    if writer == "torch":
        torch.save({"x": Hostile(evil)}, where / "tensors.pt")
    else:
        (where / "tensors.pt").write_bytes(pickle.dumps(Hostile(evil), protocol=2))
    manifest = "".join(
        f"{hashlib.sha256((where / n).read_bytes()).hexdigest()}  {n}\n"
        for n in ("meta.json", "tensors.pt")
    )
    (where / "manifest.sha256").write_text(manifest)
    with pytest.raises(RunError, match="refused"):
        load_checkpoint(tmp_path / "c")
    assert not evil.exists()


# -- locks ---------------------------------------------------------------------------------------


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
