"""Runs tests in forks of this process, with a limit of time and of memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.mutants.install import place_of
from tests.mutants.plan import ROOT

Profile = dict[str, dict[str, Any]]
MEMORY = 4 << 30  # what a mutant may take beyond what there is
ENDS = {signal.SIGPROF: "timeout", signal.SIGALRM: "timeout"}


class Failures:
    """A plugin that remembers the last test that failed, and with which exception."""

    test: str | None = None
    error: str | None = None

    def pytest_exception_interact(self, node: Any, call: Any) -> None:
        self.test, self.error = node.nodeid, call.excinfo.typename


def run_one(item: pytest.Item, failures: Failures) -> bool:
    """Whether a test passes, its set-up and tear-down included."""
    failures.test = None
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return failures.test is None


def profile(items: dict[str, pytest.Item], failures: Failures) -> Profile:
    """For each test its CPU time, the functions of rlobj that it calls, and what it raised."""
    found = {}
    for name, item in items.items():
        calls: set[str] = set()
        began = time.process_time()
        with _tracing(calls):
            passed = run_one(item, failures)
        seconds = round(time.process_time() - began, 4)
        error = None if passed else failures.error
        found[name] = {"seconds": seconds, "calls": sorted(calls), "error": error}
    return found


@contextmanager
def _tracing(calls: set[str]) -> Iterator[None]:
    """Notes which functions of rlobj run in the block."""
    prefix = f"{ROOT / 'rlobj'}/"

    def note(frame: Any, event: str, arg: Any) -> None:
        if frame.f_code.co_filename.startswith(prefix):
            calls.add(place_of(frame.f_code))

    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(None)


def try_tests(items: list[tuple[pytest.Item, float]], failures: Failures) -> dict:
    """What the first failure is, and how many tests ran until then; each within a limit of CPU
    time."""
    for n, (item, seconds) in enumerate(items, 1):
        limit_time(seconds)
        if not run_one(item, failures):
            return {"tests": n, "test": failures.test, "error": failures.error}
    return {"tests": len(items), "test": None, "error": None}


def limit_time(seconds: float) -> None:
    """End this process after so much more CPU time, or thirty times that of other time."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(max(1, int(30 * seconds)))


def in_fork(
    function: Callable[[], dict], seconds: float | None = None, quiet: bool = False
) -> dict[str, Any]:
    """What the function returned in a fork, how that ended ("end"), and its CPU time ("seconds").
    The argument ``seconds`` is as in :func:`limit_time`.

    Raises:
        RuntimeError: when the function raised; its traceback is printed.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _child(function, write, seconds, quiet)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status, used = os.wait4(child, 0)
    code, cost = os.waitstatus_to_exitcode(status), round(used.ru_utime + used.ru_stime, 2)
    if code > 0:
        raise RuntimeError("a fork failed: its error is above")
    end = "done" if code == 0 else ENDS.get(-code, f"signal {-code}")
    return {"end": end, "value": json.loads(text) if code == 0 else {}, "seconds": cost}


def _child(function: Callable[[], dict], write: int, seconds: float | None, quiet: bool) -> None:
    errors = os.dup(2)
    try:
        _limit(seconds)
        if quiet:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        found = json.dumps(function())
        sys.stdout.flush()
        with os.fdopen(write, "w") as out:
            out.write(found)
        os._exit(0)
    except BaseException:
        os.write(errors, traceback.format_exc().encode())
        os._exit(1)


def _limit(seconds: float | None) -> None:
    if seconds is not None:
        limit_time(seconds)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
