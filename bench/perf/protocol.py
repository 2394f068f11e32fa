"""How a measured program talks with what measures it: one JSON object per line, each way.

Standard library only: programs run in environments of their own, next to other libraries, where
nothing of this project's needs is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Timer
from typing import Any


class Unavailable(Exception):
    """A program has nothing to run for a request; the text says why."""


class ProgramError(Exception):
    """A program failed, died or did not answer."""


def nothing() -> None:
    """The CPU has done its work when a call returns."""


@dataclass
class Program:
    """What a measured program builds.

    Args:
        step: one gradient step (of all its seeds).
        weights: one finite number per trained tensor; they show that a step trains.
        versions: of the packages it is made of.
        counters: named functions ``updates -> counts`` that look into a step.
        synchronize: waits until the device has done what it was given.
        device_memory: peak bytes on an accelerator since the last call; None on a CPU.
        block: several steps in one call, as the program trains; returns how many they were.
        counted: steps over which what a step does is averaged, a multiple of TD3's delay.
    """

    step: Callable[[], object]
    weights: Callable[[], Sequence[float]]
    versions: Mapping[str, str]
    counters: Mapping[str, Callable[[int], Mapping[str, float]]] = field(default_factory=dict)
    synchronize: Callable[[], None] = nothing
    device_memory: Callable[[], int] | None = None
    block: Callable[[], int] | None = None
    counted: int = 2


def serve(build: Callable[[dict[str, Any]], Program]) -> int:
    """Answer requests on stdin until it ends. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = _Server(build)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, f"do_{request.pop('do')}")(**request)
        except Unavailable as reason:
            answer = {"unavailable": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


class _Server:
    def __init__(self, build: Callable[[dict[str, Any]], Program]) -> None:
        self.build = build
        self.program: Program
        self.before: list[float] = []

    def do_build(self, work: dict[str, Any], core: int | None) -> dict[str, Any]:
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})
        self.program = self.build(work)
        self.before = list(self.program.weights())
        return {"versions": dict(self.program.versions)}

    def do_run(self, seconds: float, clock: str) -> dict[str, float | None]:
        """Steps for ``seconds`` of the ``clock`` ("cpu" or "wall")."""
        program, steps = self.program, 0
        block = program.block or self._step
        now = time.process_time if clock == "cpu" else time.perf_counter
        _forget_peak()
        if program.device_memory is not None:
            program.device_memory()
        program.synchronize()
        start, cpu, wall = now(), time.process_time(), time.perf_counter()
        while now() - start < seconds:
            steps += block()
        program.synchronize()
        return {
            "steps": steps,
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "memory": _peak_memory(),
            "device_memory": program.device_memory() if program.device_memory else None,
        }

    def _step(self) -> int:
        self.program.step()
        return 1

    def do_check(self) -> dict[str, int]:
        """How many of the trained tensors have changed. Raises where one is not finite."""
        after = list(self.program.weights())
        if not all(abs(w) < float("inf") for w in after):  # nan compares false, too
            raise ProgramError("weights are no longer finite")
        changed = sum(a != b for a, b in zip(after, self.before, strict=True))
        if not changed:
            raise ProgramError("no weight has changed: the step does not train")
        return {"weights": len(after), "changed": changed}

    def do_count(self, what: str) -> dict[str, float]:
        if what not in self.program.counters:
            raise Unavailable(f"{what} is not counted here")
        return dict(self.program.counters[what](self.program.counted))


def _forget_peak() -> None:
    """Let the kernel's high-water mark of resident memory start anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # elsewhere, or not allowed: the mark is that of the whole process
        return


def _peak_memory() -> int | None:
    """Most bytes of resident memory, None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else None


class Remote:
    """A program in a process of its own, as its measurer sees it."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                [str(c) for c in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=dict(env),
                cwd=cwd,
            )
        except OSError as error:
            self._log.close()
            raise ProgramError(f"{command[0]}: {error.strerror}") from None

    def ask(self, do: str, *, timeout: float, **request: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            Unavailable: the program has nothing for it.
            ProgramError: it failed, died or needed longer than ``timeout`` seconds.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        late = Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = Timer(timeout, give_up)
        timer.start()
        try:
            print(json.dumps({"do": do, **request}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            reason = f"no answer within {timeout:g} s" if late.is_set() else self._last_words()
            raise ProgramError(reason)
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "error" in answer:
            raise ProgramError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1] if lines else f"ended with status {code}"

    def close(self) -> None:
        """End the process: it ends itself with its input, or is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
