"""What the local executor says while it trains, with a worker that only talks."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.engine.task import Task
from bench.executors import job, local
from bench.executors.local import LocalExecutor, Outcome
from bench.executors.overview import Overview
from bench.executors.pace import Pace, spell_left


def events_of(total: int, interval: int, per_step: float, per_evaluation: float) -> Iterator[Any]:
    """(step, time, is it an evaluation) as a worker reports them; warming up takes 40 s."""
    now = 40.0
    for step in range(1, total + 1):
        now += per_step
        if step % 50 == 0:
            yield step, now, False
        if step % interval == 0:
            now += per_evaluation
            yield step, now, True


@pytest.mark.parametrize("interval", [20, 50, 70, 100, 200, 300])
def test_estimates_are_right_from_the_first_one_on(interval: int) -> None:
    """Catches: time from the start of the process, and a rate without evaluations."""
    pace = Pace(1000, interval)
    estimates: list[tuple[int, float | None]] = []
    for step, now, evaluation in events_of(1000, interval, 0.1, 5.0):
        pace.note(step, now, evaluation=evaluation)
        if evaluation:
            estimates.append((step, pace.left(step)))
    known = [(step, left) for step, left in estimates if left is not None]
    assert len(known) >= len(estimates) - 2
    for step, left in known:
        true = (1000 - step) * (0.1 + 5.0 / interval)
        assert left == pytest.approx(true, rel=0.15 if step == known[0][0] else 1e-6)


def test_nothing_is_claimed_before_it_is_known() -> None:
    pace = Pace(1000, 200)
    for step, now, evaluation in events_of(199, 200, 0.1, 5.0):
        pace.note(step, now, evaluation=evaluation)
        assert pace.left(step) is None
    pace.note(200, 70.0, evaluation=True)
    assert pace.left(200) == pytest.approx((70 - 45) / 150 * 800)


def test_without_evaluations_every_report_counts() -> None:
    pace = Pace(1000, 0)
    pace.note(50, 100.0, evaluation=False)
    assert pace.left(50) is None
    pace.note(100, 105.0, evaluation=False)
    assert pace.left(100) == pytest.approx(90)


def test_the_estimate_follows_a_change_of_pace() -> None:
    """Catches: a mean over the whole run. Slow for 1000 s, then ten times as fast."""
    pace, now = Pace(10_000, 100), 0.0
    for step in range(0, 5000, 100):
        now += 20 if step < 4000 else 2
        pace.note(step, now, evaluation=True)
    for step in range(5000, 9000, 100):
        now += 2
        pace.note(step, now, evaluation=True)
    assert pace.left(8900) == pytest.approx(22)


def test_times_are_spelled() -> None:
    seconds = [None, 0.4, 45, 89, 100, 600, 3599, 12_000]
    assert [spell_left(s) for s in seconds] == [
        "", "0 s left", "45 s left", "89 s left", "2 min left", "10 min left", "1 h 0 min left",
        "3 h 20 min left",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # logs go to ./out


def task(label: str = "BC") -> Task:
    record = {"label": label, "dataset": "a[b]c", "env_id": "Pendulum-v1"}
    return Task("out", "x", None, label.lower(), "0" * 12, (0, 1), 100, {}, 20, 1, record=record)


def said(
    monkeypatch: pytest.MonkeyPatch,
    events: list[dict[str, Any]],
    terminal: bool,
    outcome: Outcome | None = None,
    stopped: bool = False,
) -> str:
    """What the executor prints of a worker that reports ``events``; it ends as ``stopped`` by the
    Ctrl-C that its start brings about."""

    def start(task: Task) -> subprocess.Popen[str]:
        text = "\n".join(map(json.dumps, events))
        if stopped:
            signal.raise_signal(signal.SIGINT)
        code = f"import sys; print(sys.argv[1]); sys.exit({130 * stopped})"
        return subprocess.Popen(
            [sys.executable, "-c", code, text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    monkeypatch.setattr(job, "start_worker", start)
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)
    expected = outcome or Outcome(interrupted=stopped)
    assert LocalExecutor(1, console).run([task()]) == expected
    return file.getvalue()


EVENTS = [
    {"event": "start", "step": 40},
    {"event": "progress", "step": 50, "rate": 12.3},
    {"event": "score", "step": 60, "score": 1.0, "unit": "return"},
    {"event": "score", "step": 80, "score": 2.0, "unit": "return"},
]


@pytest.mark.parametrize("terminal", [False, True])
def test_going_on_from_a_checkpoint_is_announced(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    text = said(monkeypatch, EVENTS, terminal)
    assert "BC · a[b]c · seed 0,1: resuming from step 40" in text
    assert "resuming" not in said(monkeypatch, [{"event": "start", "step": 0}], terminal)


def test_a_log_has_a_line_per_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said(monkeypatch, EVENTS[:2] + EVENTS[3:], False).splitlines()
    assert lines[0] == "BC · a[b]c · seed 0,1: started (100 steps)"
    assert lines[2].startswith("BC · a[b]c · seed 0,1: step 80/100 · 12/s · 0 s left · return 2.0")
    early = said(monkeypatch, [EVENTS[0], EVENTS[2]], False).splitlines()
    assert early[2] == "BC · a[b]c · seed 0,1: step 60/100 · return 1.0"  # nothing is known yet


@pytest.mark.parametrize("terminal", [False, True])
def test_a_seed_that_diverges_is_not_done(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Catches: 'done' for a run that diverged, and an outcome that does not tell."""
    events = [{"event": "diverged", "seed": 1, "text": "critic/[x] is not finite at step 5"}]
    text = said(monkeypatch, events, terminal, Outcome(diverged=1))
    assert "BC · a[b]c · seed 1: critic/[x] is not finite at step 5" in text
    assert "diverged" in text
    if not terminal:
        assert text.endswith("\nBC · a[b]c · seed 0: done\n")
    events.append({**events[0], "seed": 0})
    assert "done" not in said(monkeypatch, events, terminal, Outcome(diverged=2))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "nothing to save yet"),
        ([{"event": "stopped", "step": 0}], "nothing to save yet"),
        ([{"event": "stopped", "step": 7}], "stopped at step 7"),
    ],
)
def test_ctrl_c_tells_what_was_saved(
    monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]], expected: str
) -> None:
    text = said(monkeypatch, events, False, stopped=True)
    assert text.splitlines()[-1] == f"BC · a[b]c · seed 0,1: {expected}"
    assert "checkpoint" not in text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.kill(os.getpid(), 9)", "killed (if nobody did it, memory ran out: use fewer"),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("sys.exit(3)", "ended with status 3"),
    ],
)
def test_a_worker_that_cannot_say_why_it_ended(
    monkeypatch: pytest.MonkeyPatch, code: str, expected: str
) -> None:
    """Catches: a negative status shown as such, and no advice where the system killed it."""

    def start(task: Task) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"import os, sys; {code}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    monkeypatch.setattr(job, "start_worker", start)
    monkeypatch.setattr(local, "mark_failed", lambda task, reason: None)
    outcome = LocalExecutor(1, Console(file=io.StringIO())).run([task()])
    (failed,) = outcome.failed
    assert expected in failed


SAID = """
import json, os, sys, time
def said(*events):
    for event in events:
        print(json.dumps(event), flush=True)
"""
START, HALF = {"event": "start", "step": 0}, {"event": "progress", "step": 50, "rate": 9.0}


def run_scripted(
    monkeypatch: pytest.MonkeyPatch, scripts: dict[str, list[str]], **options: Any
) -> tuple[Outcome, str, dict[str, int]]:
    """What becomes of workers whose attempts run the given code, after ``said`` printed events:
    outcome, text, attempts by label."""
    attempts = dict.fromkeys(scripts, 0)

    def start(task: Task) -> subprocess.Popen[str]:
        label = task.record["label"]
        code = scripts[label][min(attempts[label], len(scripts[label]) - 1)]
        attempts[label] += 1
        command = [sys.executable, "-c", f"{SAID}\nSTART, HALF = {START!r}, {HALF!r}\n{code}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    monkeypatch.setattr(job, "start_worker", start)
    monkeypatch.setattr(local, "mark_failed", lambda task, reason: None)
    file = io.StringIO()
    executor = LocalExecutor(2, Console(file=file, width=200), **options)
    return executor.run([task(label) for label in scripts]), file.getvalue(), attempts


DIE = "os.kill(os.getpid(), 9)"


def test_a_worker_that_dies_is_tried_again_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripts = {"BC": [f"said(START, HALF); {DIE}", "said({**START, 'step': 50})"], "DT": ["pass"]}
    outcome, text, attempts = run_scripted(monkeypatch, scripts)
    assert outcome == Outcome() and attempts == {"BC": 2, "DT": 1}
    assert "retrying BC · a[b]c · seed 0,1: worker was killed" in text
    assert "attempt 2 of 3" in text and "resuming from step 50" in text
    assert "BC · a[b]c · seed 0,1: done" in text and "DT · a[b]c · seed 0,1: done" in text


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ([f"said(START); {DIE}"], 2),  # fails twice where it starts
        ([f"said(START, HALF); {DIE}"], 2),  # twice at step 50
        ([f"said({{**HALF, 'step': {n}}}); {DIE}" for n in (10, 20, 30, 40)], 3),  # gets on
        (["said({'event': 'error', 'text': 'a mistake'}); sys.exit(2)"], 1),
    ],
)
def test_attempts_are_bounded(
    monkeypatch: pytest.MonkeyPatch, scripts: list[str], expected: int
) -> None:
    outcome, _, attempts = run_scripted(monkeypatch, {"BC": scripts})
    assert attempts == {"BC": expected} and len(outcome.failed) == 1
    assert run_scripted(monkeypatch, {"BC": scripts}, retries=0)[2] == {"BC": 1}


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {"BC": ["said(START); time.sleep(60)", "said(START)"]}
    outcome, text, attempts = run_scripted(monkeypatch, scripts, stall=1.5)
    assert outcome == Outcome() and attempts == {"BC": 2}
    assert "worker said nothing for 2 s and was killed" in text


def test_each_task_has_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the worker wrote anywhere, of every attempt; a failure names it."""
    code = "print('about to fail', file=sys.stderr); sys.stderr.flush(); sys.exit(3)"
    text = run_scripted(monkeypatch, {"BC": [code]})[1]
    (log,) = Path("out").rglob("seeds-0-1.log")
    lines = log.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines[:3]] == [
        "attempt 1: training of 100 steps starts", "about to fail",
        "failed: worker ended with status 3",
    ]  # fmt: skip
    assert sum("about to fail" in line for line in lines) == 2
    assert "about to fail" in text and f"log: {log}" in text


def test_the_overview_shows_what_runs_and_counts_the_rest() -> None:
    """Catches: more bars than lines, and a cell that is nowhere."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=10)
    tasks = [task(f"A{n}") for n in range(20)]
    overview = Overview(console, tasks)
    for one in tasks[:12]:
        overview.update(one, "done")
    overview.update(tasks[12], "running", completed=30, rate="5/s", left="14 s left", score="x 1.0")
    overview.update(tasks[13], "failed")
    shown = [bar for bar in overview.progress.tasks if bar.visible]
    assert len(shown) <= 7 and shown[-1].fields["score"] == (
        "1 running, 6 waiting, 12 done, 1 failed"
    )
    assert (shown[-1].completed, shown[-1].total) == (13, 20)
    states = {bar.description: bar.fields["state"] for bar in shown}
    assert states[tasks[12].name] == "running" and states[tasks[13].name] == "failed"
    with overview.progress:
        overview.progress.refresh()
    assert "14 s left" in console.file.getvalue()
