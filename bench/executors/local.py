"""Runs tasks in worker processes on this machine and shows how far they are."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench.engine.task import Task, mark_failed
from bench.errors import BenchError
from bench.executors.job import Events, Job, spell_end
from bench.executors.overview import Overview
from bench.executors.pace import spell_left

_GRACE_SECONDS = 60.0
RETRIES = 2
STALL_SECONDS = 1800.0  # a worker that says nothing for so long hangs


@dataclass
class Outcome:
    """How the tasks ended."""

    failed: list[str] = field(default_factory=list)  # one line each
    mistakes: int = 0  # of these, what a user can mend
    diverged: int = 0  # seeds
    interrupted: bool = False


def default_workers(device: str) -> int:
    """One single-threaded process per core on a CPU; one process per GPU."""
    if device != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalExecutor:
    """At most ``workers`` tasks at a time, each in a process of its own: one that crashes takes
    nothing else along.

    Args:
        retries: a task whose worker dies or hangs goes on from its last checkpoint, at most so many
            times, and only as long as it gets further: what fails twice at the same place would
            fail again. A user's mistake and a lack of memory are not retried.
        stall: seconds without a word after which a worker is taken to hang.
    """

    def __init__(
        self,
        workers: int,
        console: Console | None = None,
        *,
        retries: int = RETRIES,
        stall: float = STALL_SECONDS,
    ) -> None:
        self.workers, self.retries, self.stall = workers, retries, stall
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal

    def run(self, tasks: Sequence[Task]) -> Outcome:
        """Run all tasks. Ctrl-C (and SIGTERM) stop the workers after a checkpoint."""
        self.outcome = Outcome()
        self._waiting = deque((task, 1) for task in tasks)  # with the number of the attempt
        self._reached: Counter[str] = Counter()  # by task: the furthest step so far
        self._active: list[Job] = []
        self._events: Events = queue.Queue()
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        self.overview = Overview(self.console, tasks)
        try:
            with self.overview.progress if self.live else nullcontext():
                self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.outcome

    def _loop(self) -> None:
        while self._waiting or self._active:
            while self._waiting and len(self._active) < self.workers:
                self._launch(*self._waiting.popleft())
            try:
                job, event = self._events.get(timeout=0.2)
            except queue.Empty:
                self._stop_stalled()
                continue
            self._handle(job, event)

    def _launch(self, task: Task, attempt: int) -> None:
        job = Job(task, self._events, attempt)
        self._active.append(job)
        self.overview.update(task, "running", score="starting")
        self._line(f"{task.name}: started ({task.steps} steps)")

    def _stop_stalled(self) -> None:
        for job in self._active:
            if time.monotonic() - job.heard > self.stall:
                job.stop_stalled()

    def _line(self, text: str) -> None:
        """What only a log needs: the bars show it on a terminal."""
        if not self.live:
            self._say(text)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _warn(self, word: str, text: str) -> None:
        self.console.print(f"[red]{word}[/] {escape(text)}", highlight=False, soft_wrap=True)

    # -------------------------------------------------------------- what workers say

    def _handle(self, job: Job, event: dict[str, Any]) -> None:
        getattr(self, f"_on_{event['event']}")(job, event)

    def _on_start(self, job: Job, event: dict[str, Any]) -> None:
        job.begun = job.step = event["step"]
        self.overview.update(job.task, "running", completed=event["step"])
        if event["step"]:
            self._say(f"{job.task.name}: resuming from step {event['step']}")

    def _on_progress(self, job: Job, event: dict[str, Any]) -> None:
        job.rate, job.step = f"{event['rate']:.0f}/s", event["step"]
        left = self._left(job, event)
        self.overview.update(job.task, completed=event["step"], rate=job.rate, left=left)

    def _on_score(self, job: Job, event: dict[str, Any]) -> None:
        text, left = f"{event['unit']} {event['score']:.1f}", self._left(job, event)
        job.step = max(job.step, event["step"])  # evaluations may be behind
        self.overview.update(job.task, completed=job.step, left=left, score=text)
        parts = [f"step {event['step']}/{job.task.steps}", job.rate, left, text]
        line = " · ".join(filter(None, parts))
        job.say(line)
        self._line(f"{job.task.name}: {line}")

    def _on_note(self, job: Job, event: dict[str, Any]) -> None:
        job.say(event["text"])
        self._say(event["text"])

    def _on_diverged(self, job: Job, event: dict[str, Any]) -> None:
        if event["seed"] not in job.diverged:
            job.diverged.append(event["seed"])
        self.outcome.diverged += 1
        job.say(f"seed {event['seed']} diverged: {event['text']}")
        self._warn("diverged", f"{job.task.name_of([event['seed']])}: {event['text']}")

    def _on_stopped(self, job: Job, event: dict[str, Any]) -> None:
        job.saved = event["step"]

    def _on_error(self, job: Job, event: dict[str, Any]) -> None:
        job.errors.append(event["text"])

    def _left(self, job: Job, event: dict[str, Any]) -> str:
        job.pace.note(event["step"], time.monotonic(), evaluation=event["event"] == "score")
        return spell_left(job.pace.left(event["step"]))

    # -------------------------------------------------------------------- their ends

    def _on_end(self, job: Job, event: dict[str, Any]) -> None:
        code = job.finish()
        self._active.remove(job)
        if code in (130, 143) and self.outcome.interrupted:
            where = f"stopped at step {job.saved}" if job.saved else "nothing to save yet"
            self.overview.update(job.task, "stopped")
            job.say(where)
            self._say(f"{job.task.name}: {where}")
        elif code == 0:
            self._done(job)
        else:
            self._failed(job, code)

    def _done(self, job: Job) -> None:
        good = [seed for seed in job.task.seeds if seed not in job.diverged]
        self.overview.update(job.task, "done" if good else "diverged", left="")
        job.say("done")
        if good:
            self._line(f"{job.task.name_of(good)}: done")

    def _failed(self, job: Job, code: int) -> None:
        reason = job.errors[-1] if job.errors else spell_end(code)
        if job.stalled:
            reason = f"worker said nothing for {self.stall:.0f} s and was killed"
        job.say(f"failed: {reason}")
        if self._may_retry(job, code):
            again = f"attempt {job.attempt + 1} of {self.retries + 1}"
            self._warn("retrying", f"{job.task.name}: {reason}; {again}")
            self.overview.update(job.task, "retrying")
            self._waiting.append((job.task, job.attempt + 1))
            return
        self.overview.update(job.task, "failed")
        self.outcome.failed.append(f"{job.task.name}: {reason}")
        self.outcome.mistakes += code == 2
        self._warn("failed", f"{job.task.name}: {reason}")
        if not job.errors:  # it could not say why
            self.console.print("".join(job.tail), highlight=False, markup=False)
            self._say(f"log: {job.log}")
        if code < 0:  # killed: it could not say so itself
            self._mark_failed(job.task, reason)

    def _may_retry(self, job: Job, code: int) -> bool:
        """The first time anywhere, later only where the attempt got further than those before."""
        furthest = self._reached[job.task.name]
        self._reached[job.task.name] = max(furthest, job.step)
        if code == 2 or self.outcome.interrupted or job.attempt > self.retries:
            return False
        return job.attempt == 1 or job.step > furthest

    def _mark_failed(self, task: Task, reason: str) -> None:
        try:
            mark_failed(task, reason)
        except BenchError as error:  # a full disk, or another runner is at it: others go on
            self._say(f"note: {error}")

    # -------------------------------------------------------------------------- stop

    def _stop(self, number: int, frame: Any) -> None:
        if self.outcome.interrupted:
            return
        self.outcome.interrupted = True
        self._waiting.clear()
        self.console.print("stopping every run ...")
        for job in self._active:
            job.process.send_signal(signal.SIGINT)
        timer = threading.Timer(_GRACE_SECONDS, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        for job in list(self._active):
            job.process.kill()
