"""Atomic files and run folders under kills, damage and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench.errors import RunError
from bench.store import (
    RunFolder,
    atomic_write,
    config_hash,
    iter_runs,
    save_checkpoint,
)
from bench.store import files as store_files

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


CONFIG = {
    "schema_version": 1, "algorithm": "td3_bc", "dataset": "lite/hopper/medium-v0",
    "config": "0123456789ab", "seed": 3, "hyperparameters": {"alpha": 2.5},
    "paper": "Fujimoto 2020", "reference": (1.0, 2.0), "data": {"stats": {"return_mean": 0.1}},
    "git_commit": "a", "device": "cpu", "group": [3, 4], "cpu": {"model": "x", "threads": 2},
}  # fmt: skip


def test_the_same_config_again_changes_nothing(run):
    run.write_config(CONFIG)
    before = (run.path / "config.json").read_bytes()
    run.write_config({**CONFIG, "reference": [1.0, 2.0]})  # JSON knows lists only
    assert (run.path / "config.json").read_bytes() == before


@pytest.mark.parametrize("key", ["schema_version", "algorithm", "dataset", "config", "seed"])
def test_the_config_of_another_run_is_refused(run, key):
    run.write_config(CONFIG)
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(RunError, match=rf"config\.json: '{key}' is .* there and 99 in this run"):
        run.write_config({**CONFIG, key: 99})
    assert (run.path / "config.json").read_bytes() == before


def test_a_corrected_citation_or_a_last_bit_does_not_stop_a_resume(run):
    run.write_config(CONFIG)
    before = (run.path / "config.json").read_bytes()
    stats = {"return_mean": math.nextafter(0.1, 1)}
    run.write_config({**CONFIG, "paper": "Fujimoto 2021", "data": {"stats": stats}, "new": True})
    assert (run.path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("git_commit", "b"), ("device", "cuda"), ("versions", {"torch": "2.11.0"}),
     ("group", [3]), ("cpu", {"model": "y", "threads": 2}), ("reference", [0.0, 2.0])],
)  # fmt: skip
def test_a_resume_under_other_conditions_is_recorded_once(run, key, value):
    first = {"git_commit": "a", "device": "cpu", "group": [3, 4], "reference": [1.0, 2.0],
             "cpu": {"model": "x", "threads": 2}}  # fmt: skip
    run.write_config(CONFIG)
    for _ in range(2):
        run.write_config({**CONFIG, key: value})
        run.write_config(CONFIG)
    config = json.loads((run.path / "config.json").read_text())
    assert {k: config[k] for k in first} == first
    assert config["resumed_with"] == [{**first, key: value}]


@pytest.mark.parametrize("later", [{"git_commit": "b"}, ["b"]])
def test_a_damaged_record_of_resumes_is_one_line(run, later):
    run.write_config({**CONFIG, "resumed_with": later})
    with pytest.raises(RunError, match=r"config\.json: 'resumed_with' is .* not a list of objects"):
        run.write_config(CONFIG)


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
