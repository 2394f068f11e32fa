"""One pass on request, or pass after pass beside a training process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bench.errors import BenchError, RunError
from bench.track.mirror import Mirror, SyncReport

INTERVAL, LONGEST_PAUSE = 5.0, 300.0


def sync(out: Path, *, uri: str | None = None, follow: bool = False) -> SyncReport:
    """Mirror the runs under ``out`` into MLflow: what is missing there, nothing twice.

    ``uri``: a tracking URI; by default ``MLFLOW_TRACKING_URI`` or ``sqlite:///OUT/mlflow.db``.
    With ``follow`` it goes on every few seconds until interrupted (Ctrl-C). Raises BenchError
    where MLflow is missing or fails; followed, it says so once and tries again.
    """
    mirror = Mirror(out, uri)
    if not mirror.out.is_dir():
        raise RunError(f"{out}: does not exist; make runs with `bench run` first")
    if not follow:
        return mirror.sync()
    never = threading.Event()
    try:
        return follow_until(mirror, never.wait)
    except KeyboardInterrupt:
        return mirror.sync()


def follow_until(mirror: Mirror, stop: Callable[[float], bool]) -> SyncReport:
    """Pass after pass until ``stop(seconds)``, which waits that long, returns True; then a last
    one. An outage is reported once, on standard error, and met with growing pauses."""
    total, pause, ended = SyncReport(mirror.uri), INTERVAL, False
    while True:
        try:
            report = mirror.sync()
        except BenchError as error:
            if pause == INTERVAL:
                sys.stderr.write(f"warning: {error}\n")
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            if pause > INTERVAL:
                sys.stderr.write(f"note: MLflow at {mirror.uri} is back\n")
            pause = INTERVAL
            _add(total, report)
        if ended:
            return total
        ended = stop(pause)


def _add(total: SyncReport, report: SyncReport) -> None:
    total.runs, total.problems = report.runs, report.problems
    total.created += report.created
    total.metrics += report.metrics
    total.artifacts += report.artifacts


class Follower:
    """Mirrors ``out`` from a process of its own while ``with Follower(out):`` trains.

    Nothing it does or fails to do reaches the training process; its one line per outage goes to
    standard error. It ends by itself when the training process does, however that ends.
    """

    def __init__(self, out: Path, uri: str | None = None, *, patience: float = 60.0):
        self.out, self.uri, self.patience = Path(out), uri, patience
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; where that is impossible, say so and go on."""
        command = [sys.executable, "-m", "bench.track", str(self.out)]
        command += ["--uri", self.uri] if self.uri else []
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for training; this one then sends the rest
            )
        except OSError as error:
            sys.stderr.write(f"warning: no MLflow mirror ({error}); run `bench sync` later\n")

    def stop(self) -> None:
        """Let it send the rest, for ``patience`` seconds at most."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(self.patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            sys.stderr.write("warning: MLflow is slow; `bench sync` will send the rest\n")
