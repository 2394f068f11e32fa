"""A worker process: started, listened to, and logged."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from bench.engine.task import Task
from bench.executors.pace import Pace
from bench.store import RunFolder

Events = queue.Queue[tuple["Job", dict[str, Any]]]
_LAST_LINES = 15


def start_worker(task: Task) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,  # Ctrl-C is passed on once, by us
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        json.dump(task.to_json(), pipe)
    return process


def log_path(task: Task) -> Path:
    """Beside the folders of its seeds."""
    name, seed = task.record["dataset"], task.seeds[0]
    folder = RunFolder(Path(task.out), name, task.algorithm, task.config, seed).path
    return folder.with_name(f"seeds-{'-'.join(map(str, task.seeds))}.log")


def spell_end(code: int) -> str:
    """Why a worker ended that could not say so itself, and what may help."""
    if code >= 0:
        return f"worker ended with status {code}"
    name = signal.Signals(-code).name
    if name != "SIGKILL":
        return f"worker was killed by {name}"
    return "worker was killed (if nobody did it, memory ran out: use fewer --workers or --seeds)"


class Job:
    """One attempt at a task, and what its worker said."""

    def __init__(self, task: Task, events: Events, attempt: int = 1) -> None:
        self.task, self.attempt = task, attempt
        self.log = log_path(task)
        self.say(f"attempt {attempt}: training of {task.steps} steps starts")
        self.process = start_worker(task)
        evaluated = task.record["env_id"] is not None and task.eval_interval < task.steps
        self.rate, self.pace = "", Pace(task.steps, task.eval_interval if evaluated else 0)
        self.errors: list[str] = []
        self.diverged: list[int] = []  # seeds
        self.begun = 0  # the step that this attempt went on from
        self.step = 0  # how far training is
        self.saved = 0  # the step of the checkpoint that it stopped at
        self.heard = time.monotonic()  # when it last said something
        self.stalled = False
        self.tail: deque[str] = deque(maxlen=_LAST_LINES)
        assert self.process.stdout is not None and self.process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, events), daemon=True),
            threading.Thread(target=self._read_errors, args=(self.process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: IO[str], events: Events) -> None:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                self._keep(line)
                continue
            self.heard = time.monotonic()
            events.put((self, event))
        events.put((self, {"event": "end"}))

    def _read_errors(self, stream: IO[str]) -> None:
        for line in stream:
            self._keep(line)

    def _keep(self, line: str) -> None:
        self.tail.append(line)
        self.say(line.rstrip("\n"))

    def say(self, text: str) -> None:
        """A line of the log. Training does not end because a disk has no room for it: what matters
        is in the run folders, and these say so."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{now} {text}\n")
        except OSError:
            return

    def stop_stalled(self) -> None:
        self.stalled = True
        self.process.kill()

    def finish(self) -> int:
        code = self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code
