"""One group of seeds of one cell: train, evaluate, log, checkpoint, resume."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from bench.engine import memory
from bench.engine.beside import Beside
from bench.engine.best import Best
from bench.engine.evaluation import Evaluation, Pending, Runner, Setup, as_hyper
from bench.engine.problem import problem_of, to_json, training_table
from bench.engine.sampling import Sampler
from bench.engine.stream import Streamed
from bench.engine.task import Task
from bench.engine.trainer import Trainer
from bench.errors import BenchError, RunError
from bench.evaluate import Rollouts
from bench.recipe import load_recipe
from bench.store import GroupLock, RunFolder, load_checkpoint, save_checkpoint

_PROGRESS_STEPS = 50
_CHECKPOINT_SECONDS = 120.0  # at least this often between evaluations
ERROR_LOG = "error.log"  # in a run folder: the traceback of an unexpected error


Report = Callable[[dict[str, Any]], None]


class Interrupted(Exception):
    """Raised after a requested stop was made durable."""


class Cell:
    """The seeds of a task as one training program with its folders."""

    def __init__(self, task: Task, dataset: Any, report: Report) -> None:
        self.task, self.dataset, self.report = task, dataset, report
        self.recipe = load_recipe(task.algorithm)
        self.hyper = as_hyper(self.recipe, task.hyper)
        self.problem = problem_of(dataset, self.hyper)
        name = task.record["dataset"]
        self.folders = [
            RunFolder(Path(task.out), name, task.algorithm, task.config, s) for s in task.seeds
        ]
        group = "seeds-" + "-".join(map(str, task.seeds))
        self.checkpoints = self.folders[0].path.parent / "checkpoints" / group
        self.diverged: dict[int, str] = {}  # position in the group -> reason
        self.pending = Pending(self._write)
        self.best = Best(len(task.seeds))
        self.runner: Runner | None = None  # None: there is nothing to evaluate in
        self.seconds = 0.0  # spent in updates
        self.stop_requested = False
        self.training = False  # from here on a stop is requested; before, just exit

    @cached_property
    def trainer(self) -> Trainer:
        """Prepared by its first use, when the run folders are there to say how that went."""
        task, device = self.task, torch.device(self.task.device)
        table = training_table(self.recipe, self.hyper, self.dataset.transitions, self.problem)
        return Trainer(
            lambda: self.recipe.build(self.hyper, self.problem),
            task.seeds,
            self._sampler(table, device),
            total_steps=task.steps,
            device=device,
            compiled=task.compile,
        )

    def _sampler(self, table: TensorDict, device: torch.device) -> Sampler:
        """With the table on the device, or in a file where it is larger than allowed."""
        needed = memory.data_bytes(self.recipe, self.hyper, self.dataset.transitions)
        if needed <= self._data_memory:
            return self.recipe.sampler(self.hyper, table, device)
        file = Path(self.task.out) / "cache" / self.dataset.fingerprint[:12]
        text = f"{memory.spell(needed)} of training data are streamed from {file.parent}"
        self.report({"event": "note", "text": f"{self.task.name}: {text}"})
        return Streamed(self.recipe.sampler(self.hyper, table, torch.device("cpu"), file), device)

    @cached_property
    def _data_memory(self) -> int:
        """Bytes that the table may take, as asked for or from what was free at first."""
        asked = self.task.data_memory
        return memory.default_limit(self.task.device) if asked is None else asked

    # ------------------------------------------------------------ state on disk

    def resume(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """Make the run folders ready to go on after the last checkpoint, whose step and tensors
        come back; rows that it does not cover are dropped.

        Raises:
            RunError: when a seed's folder holds steps that the group's checkpoint does not cover.
        """
        found = load_checkpoint(self.checkpoints)
        step = -1
        if found is not None:
            step, _, meta = found
            for key, reason in meta["diverged"].items():
                self._diverge(int(key), reason)
            self.seconds = float(meta["train_seconds"])
            self.pending.restore(meta.get("pending", []), found[1])
            self.best.restore(meta.get("best", self.best.found), found[1])
        if found is None:
            for folder in self.folders:
                _check_untrained(folder)
        written = self.pending.written(step)
        for i, folder in enumerate(self.folders):
            seeds = self.task.seeds
            config = {**self.task.record, "seed": seeds[i], "group": list(seeds)}
            folder.write_config(config, anew=found is None)
            folder.truncate_after(written)
            (folder.path / ERROR_LOG).unlink(missing_ok=True)  # an earlier attempt's
            self._set_status(i, "running", step=max(written, 0), steps=self.task.steps)
        return found and found[:2]

    def checkpoint(self, state: str = "running") -> None:
        """Make everything up to this step durable."""
        for folder in self.folders:
            folder.sync()
        meta = {
            "seeds": list(self.task.seeds),
            "train_seconds": self.seconds,
            "diverged": {str(k): v for k, v in self.diverged.items()},
            "pending": self.pending.meta(),
            "best": self.best.found,
            "problem": to_json(self.problem),
        }
        trainer, pending = self.trainer, self.pending
        tensors = {**trainer.state(), **pending.tensors(), **self.best.tensors()}
        save_checkpoint(self.checkpoints, trainer.step, tensors, meta)
        written = pending.written(trainer.step)
        facts = {"step": written, "steps": self.task.steps, "engine": trainer.engine}
        facts["data"] = "streamed" if isinstance(trainer.sampler, Streamed) else "in memory"
        for i in range(len(self.folders)):
            self._set_status(i, state, train_seconds=round(self.seconds, 3), **facts)

    def _set_status(self, i: int, state: str, **facts: Any) -> None:
        """Whatever becomes of the group, a seed that diverged stays so; it may be skipped from
        then on, so not before its last row is written."""
        if i in self.diverged and not self.pending.concerns(i):
            state, facts = "diverged", {**facts, "reason": self.diverged[i]}
        self.folders[i].set_status(state, **facts)

    # ---------------------------------------------------------------- training

    def run(self) -> None:
        """Train to the last step. Raises Interrupted after a requested stop.

        Each seed's folder is locked, so that two runners never write into one.
        """
        with ExitStack() as stack:
            locks = [stack.enter_context(GroupLock(folder.path)) for folder in self.folders]
            stack.callback(self._close)
            for note in filter(None, (lock.note for lock in locks)):
                self.report({"event": "note", "text": note})
            found = self.resume()
            try:
                if found is not None:
                    self.trainer.load_state(*found)
                self._prepare_evaluation()
                self._train(locks)
            except Interrupted:
                self.report({"event": "stopped", "step": self.trainer.step})
                raise
            except SystemExit:  # before training: what was saved, if anything, is an earlier leg's
                self._end("killed")
                self.report({"event": "stopped", "step": found[0] if found else 0})
                raise
            except Exception as error:
                told = self._told(error)
                self._end("failed", reason=f"{type(told).__name__}: {told}".splitlines()[0])
                if not isinstance(error, BenchError):
                    for folder in self.folders:
                        (folder.path / ERROR_LOG).write_text(traceback.format_exc())
                if told is error:
                    raise
                raise told from error

    def _told(self, error: Exception) -> Exception:
        """What a user is told of an error."""
        if not memory.is_out_of_memory(error):
            return error
        transitions, limit, seeds = self.dataset.transitions, self._data_memory, self.task.seeds
        parts = (self.recipe, self.hyper, self.problem, transitions, seeds)
        try:
            needed = memory.estimate(*parts, limit)
        except Exception:  # there may be no memory for an estimate either
            return error
        return memory.out_of_memory(needed, self.hyper, seeds)

    def _train(self, locks: Sequence[GroupLock]) -> None:
        self.report({"event": "start", "step": self.trainer.step})
        self.training = True
        self._reported = (self.trainer.step, self.seconds)
        saved, steps, interval = time.monotonic(), self.task.steps, self.task.eval_interval
        while self.trainer.step < steps and len(self.diverged) < len(self.folders):
            started = time.perf_counter()
            before = self.trainer.step
            self._advance(min(interval - before % interval, steps - before))
            step = self.trainer.step
            looked = before // _PROGRESS_STEPS < step // _PROGRESS_STEPS
            if looked or step % interval == 0 or step == steps:
                self._stop_broken()  # this waits for the device, which is time of updates
            self.seconds += time.perf_counter() - started
            if looked:
                self._progress(step)
            evaluated = step % interval == 0 or step == steps
            if evaluated:
                self._evaluate(step)
            self._collect(self.runner.limit if self.runner else 0)
            stopping = self.stop_requested and step < steps  # the flag may change any moment
            if evaluated or stopping or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                for lock in locks:
                    lock.check()
                self.checkpoint("killed" if stopping else "running")
                saved = time.monotonic()
            if stopping:
                raise Interrupted
        self._collect(0)
        for lock in locks:
            lock.check()
        self.checkpoint("killed" if self.pending else "done")
        if self.pending:  # a stop was requested
            raise Interrupted

    def _advance(self, limit: int) -> None:
        engine = self.trainer.engine
        self.trainer.advance(limit)
        if self.trainer.engine != engine:
            self.report({"event": "note", "text": f"{self.task.name}: {self.trainer.engine}"})

    def _end(self, state: str, **facts: Any) -> None:
        for i in range(len(self.folders)):
            self._set_status(i, state, **facts)

    def _diverge(self, i: int, reason: str) -> None:
        self.diverged[i] = reason
        self.report({"event": "diverged", "seed": self.task.seeds[i], "text": reason})

    def _progress(self, step: int) -> None:
        (last, then), self._reported = self._reported, (step, self.seconds)
        rate = (step - last) / max(self.seconds - then, 1e-9)
        self.report({"event": "progress", "step": step, "rate": rate})

    def _stop_broken(self) -> None:
        for i, reason in self.trainer.broken().items():
            if i not in self.diverged:
                self._diverge(i, reason)

    # -------------------------------------------------------------- evaluation

    def _prepare_evaluation(self) -> None:
        task, env_id = self.task, self.task.env_id or self.dataset.env_id
        if env_id is None:
            return
        setup = Setup(
            task.algorithm,
            task.hyper,
            self.problem,
            env_id,
            self.dataset.horizon,
            task.seeds,
            task.eval_episodes,
        )
        if task.eval_workers or self.pending:
            self.runner = Beside(setup, max(1, task.eval_workers))
            self.pending.start_again(self.runner)
        if not task.eval_workers:
            self._collect(0)  # what an earlier leg left
            self._close()
            self.runner = setup.prepare(self.trainer.agent, self.trainer.tensors)

    def _close(self) -> None:
        if self.runner is not None:
            self.runner.close()

    def _evaluate(self, step: int) -> None:
        """Have the rows of a step written, now or later."""
        alive = [i for i in range(len(self.folders)) if i not in self.diverged]
        metrics = self.trainer.read_metrics()
        self.pending.add(self.runner, step, alive, metrics, self.trainer.tensors)

    def _collect(self, allowed: int) -> None:
        self.pending.collect(allowed, lambda: self.stop_requested)

    def _write(self, evaluation: Evaluation, found: Sequence[Rollouts]) -> None:
        """Scores of the first policy are the run's; other targets are logged as metrics."""
        step, targets = evaluation.step, getattr(self.hyper, "target_returns", ())
        for i in evaluation.alive:
            folder = self.folders[i]
            folder.append_metrics((step, k, v[i]) for k, v in evaluation.metrics.items())
            if found:
                folder.append_scores(self._scores(step, i, found[0]))
            means = [float(rollouts.returns[i].mean()) for rollouts in found]
            named = zip(targets, means, strict=False)
            folder.append_metrics((step, f"eval/return_at_{t:g}", mean) for t, mean in named)
        if found:
            score = self._mean_score(found[0])
            self.report({"event": "score", "step": step, "score": score, "unit": self.dataset.unit})
            self.best.offer(evaluation, found[0])

    def _scores(self, step: int, i: int, rollouts: Rollouts) -> Iterator[tuple]:
        pairs = zip(rollouts.returns[i].tolist(), rollouts.lengths[i].tolist(), strict=True)
        for episode, (ret, length) in enumerate(pairs):
            yield step, episode, ret, length, self._score(ret)

    def _score(self, value: float) -> float | None:
        return self.dataset.normalize(value)

    def _mean_score(self, rollouts: Rollouts) -> float:
        mean = float(rollouts.returns.mean())
        score = self._score(mean)
        return mean if score is None else score


def _check_untrained(folder: RunFolder) -> None:
    status = folder.status()
    if status is not None and status["step"] > 0:
        raise RunError(
            f"{folder.path}: holds {status['step']} steps and no checkpoint covers them: another "
            "runner trained it meanwhile (repeat the command), or its checkpoint was removed "
            "(move the folder away to start again)"
        )
