"""Evaluations in processes beside training.

A process reads its setup as a line of JSON, then for every job a line of JSON and the bytes of the
tensors that policies read; it answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import numpy as np
from torch import Tensor

from bench.engine import cpu
from bench.engine.evaluation import Setup
from bench.engine.worker import die_with_parent
from bench.errors import BenchError, RunError
from bench.evaluate import Rollouts


def default_workers(device: str) -> int:
    """None on a CPU, where training has every core; on a GPU some of those that it leaves."""
    return 0 if device == "cpu" else max(1, min(4, (os.cpu_count() or 1) - 1))


class Beside:
    """Evaluates in processes of its own, each busy with one policy at one step.

    Every process holds all seeds and episodes, so a score does not depend on how many there are.
    """

    def __init__(self, setup: Setup, workers: int) -> None:
        self.limit = workers + 1
        self.processes = [_Process(setup) for _ in range(workers)]
        self._ready: dict[str, Any] | None = None
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self.processes:
            self._idle.put(process)
        self._pool = ThreadPoolExecutor(workers, "bench-evaluation")

    @property
    def reads(self) -> Sequence[str]:
        """Waits until every process is ready. Raises what kept one from it."""
        if self._ready is None:
            (self._ready, *_) = [process.answer("starting") for process in self.processes]
        return self._ready["reads"]

    def start(self, step: int, tensors: Mapping[str, Tensor]) -> list[Future[Rollouts]]:
        payload = b"".join(tensors[name].numpy().tobytes() for name in self.reads)
        assert self._ready is not None
        count = self._ready["policies"]
        return [self._pool.submit(self._run, step, i, payload) for i in range(count)]

    def _run(self, step: int, policy: int, payload: bytes) -> Rollouts:
        process = self._idle.get()
        try:
            process.send({"step": step, "policy": policy}, payload)
            answer = process.answer(f"evaluating step {step}")
        finally:
            self._idle.put(process)
        return Rollouts(np.array(answer["returns"]), np.array(answer["lengths"]))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self._pool.shutdown(cancel_futures=True)
        for process in self.processes:
            process.close()


class _Process:
    """An evaluation process, seen from the training process."""

    def __init__(self, setup: Setup) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "bench.engine.beside"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self._to, self._from = self.popen.stdin, self.popen.stdout
        self.send(setup.to_json())

    def send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        with suppress(BrokenPipeError):  # the answer says why
            self._to.write(json.dumps(message).encode() + b"\n" + payload)
            self._to.flush()

    def answer(self, doing: str) -> dict[str, Any]:
        """The next answer.

        Raises:
            RunError: the process ended, or reports a user's mistake.
            RuntimeError: it reports any other error; the message ends with its traceback.
        """
        line = self._from.readline()
        if not line.endswith(b"\n"):
            raise RunError(
                f"the evaluation process ended with status {self.popen.wait()} while {doing}; "
                "repeat the command to go on from the last checkpoint"
            )
        found = json.loads(line)
        if "traceback" in found:
            raise RuntimeError(f"{found['error']} (while {doing})\n{found['traceback']}")
        if "error" in found:
            raise RunError(found["error"])
        return found

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        self._from.close()
        with suppress(BrokenPipeError):
            self._to.close()


def _serve(requests: IO[bytes], answer: Callable[[dict[str, Any]], None]) -> None:
    here = Setup.from_json(json.loads(requests.readline())).prepare()
    answer({"reads": here.reads, "policies": len(here.policies)})
    for line in iter(requests.readline, b""):
        job = json.loads(line)
        for name in here.reads:
            memory = here.tensors[name].numpy().reshape(-1).view(np.uint8)
            if requests.readinto(memory) != memory.size:  # type: ignore[attr-defined]
                return  # the training process is gone
        rollouts = here.evaluator.run(here.policies[job["policy"]], job["step"])
        answer({"returns": rollouts.returns.tolist(), "lengths": rollouts.lengths.tolist()})


def main() -> int:
    """An evaluation process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends it
    die_with_parent()
    cpu.prepare()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a simulator prints is not an answer

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        _serve(sys.stdin.buffer, answer)
    except BenchError as error:
        answer({"error": str(error)})
        return 2
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        answer({"error": first, "traceback": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
