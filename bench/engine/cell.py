"""One group of seeds of one cell: train, evaluate, log, checkpoint, resume."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from bench.engine.trainer import Trainer
from bench.errors import BenchError, ConfigError, RunError
from bench.evaluate import Evaluator, Policy
from bench.policies import MarkovPolicy, SequencePolicy
from bench.recipe import Problem, load_recipe
from bench.store import GroupLock, RunFolder, load_checkpoint, save_checkpoint
from rlobj.specs import Bounded

_PROGRESS_STEPS = 50
_CHECKPOINT_SECONDS = 120.0  # at least this often between evaluations
ERROR_LOG = "error.log"  # in a run folder: the traceback of an unexpected error


@dataclass(frozen=True)
class Task:
    """Everything a worker needs; plain JSON."""

    out: str
    dataset: str  # as the user named it: id or path
    env_id: str | None
    algorithm: str
    config: str
    seeds: tuple[int, ...]
    steps: int
    hyper: dict[str, Any]
    eval_interval: int
    eval_episodes: int
    device: str = "cpu"
    compile: bool = False
    tf32: bool = False
    strict: bool = False
    record: dict[str, Any] = field(default_factory=dict)  # config.json without the seed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        return cls(**{**data, "seeds": tuple(data["seeds"])})

    @property
    def name(self) -> str:
        return self.name_of(self.seeds)

    def name_of(self, seeds: Sequence[int]) -> str:
        """'TD3+BC · hopper · seed 0,1'."""
        spelled = ",".join(map(str, seeds))
        return f"{self.record['label']} · {self.record['dataset']} · seed {spelled}"


Report = Callable[[dict[str, Any]], None]


def mark_failed(task: Task, reason: str) -> None:
    """Write down that a task's worker was killed, unless somebody else trains its seeds by now."""
    for seed in task.seeds:
        name = task.record["dataset"]
        folder = RunFolder(Path(task.out), name, task.algorithm, task.config, seed)
        with GroupLock(folder.path):
            status = folder.status()
            if status is not None and status["state"] == "running":
                folder.set_status("failed", reason=reason)


class Interrupted(Exception):
    """Raised after a requested stop was made durable."""


def problem_of(dataset: Any, hyper: Any) -> Problem:
    """Sizes, bounds and observation normalisation of a continuous dataset."""
    if dataset.discrete:
        raise ConfigError(f"{dataset.name} has discrete actions: this recipe needs continuous ones")
    data = dataset.transitions
    spec = Bounded(dataset.action_low, dataset.action_high)
    mean = std = None
    if hyper.normalize:
        mean = data["observation"].mean(0)
        std = data["observation"].std(0, correction=0) + hyper.normalize_eps
    longest = max(int(data["t"].max()) + 1, dataset.horizon or 0, 1000)
    return Problem(data["observation"].shape[-1], spec, longest, mean, std)


def training_table(recipe: Any, hyper: Any, data: TensorDict, problem: Problem) -> TensorDict:
    """The recipe's table with normalised observations."""
    table = recipe.table(hyper, data).copy()
    if problem.mean is not None:
        for key in ("observation", ("next", "observation")):
            if key in table.keys(True, True):
                table.set(key, (table[key] - problem.mean) / problem.std)
    return table


class Cell:
    """The seeds of a task as one training program with its folders."""

    def __init__(self, task: Task, dataset: Any, report: Report) -> None:
        self.task, self.dataset, self.report = task, dataset, report
        self.recipe = load_recipe(task.algorithm)
        self.hyper = self.recipe.hyper(**_tuples(task.hyper))
        self.problem = problem_of(dataset, self.hyper)
        name = task.record["dataset"]
        self.folders = [
            RunFolder(Path(task.out), name, task.algorithm, task.config, s) for s in task.seeds
        ]
        group = "seeds-" + "-".join(map(str, task.seeds))
        self.checkpoints = self.folders[0].path.parent / "checkpoints" / group
        self.diverged: dict[int, str] = {}  # position in the group -> reason
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
            self.recipe.sampler(self.hyper, table, device),
            total_steps=task.steps,
            device=device,
            compiled=task.compile,
        )

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
        if found is None:
            for folder in self.folders:
                _check_untrained(folder)
        for i, folder in enumerate(self.folders):
            seeds = self.task.seeds
            config = {**self.task.record, "seed": seeds[i], "group": list(seeds)}
            folder.write_config(config, anew=found is None)
            folder.truncate_after(step)
            (folder.path / ERROR_LOG).unlink(missing_ok=True)  # an earlier attempt's
            self._set_status(i, "running", step=max(step, 0), steps=self.task.steps)
        return found and found[:2]

    def checkpoint(self, state: str = "running") -> None:
        """Make everything up to this step durable."""
        for folder in self.folders:
            folder.sync()
        meta = {
            "seeds": list(self.task.seeds),
            "train_seconds": self.seconds,
            "diverged": {str(k): v for k, v in self.diverged.items()},
        }
        save_checkpoint(self.checkpoints, self.trainer.step, self.trainer.state(), meta)
        for i in range(len(self.folders)):
            trainer = self.trainer
            facts = {"step": trainer.step, "steps": self.task.steps, "engine": trainer.engine}
            self._set_status(i, state, train_seconds=round(self.seconds, 3), **facts)

    def _set_status(self, i: int, state: str, **facts: Any) -> None:
        """Whatever becomes of the group, a seed that diverged stays so."""
        if i in self.diverged:
            state, facts = "diverged", {**facts, "reason": self.diverged[i]}
        self.folders[i].set_status(state, **facts)

    # ---------------------------------------------------------------- training

    def run(self) -> None:
        """Train to the last step. Raises Interrupted after a requested stop.

        Each seed's folder is locked, so that two runners never write into one.
        """
        with ExitStack() as stack:
            locks = [stack.enter_context(GroupLock(folder.path)) for folder in self.folders]
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
                self._end("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
                if not isinstance(error, BenchError):
                    for folder in self.folders:
                        (folder.path / ERROR_LOG).write_text(traceback.format_exc())
                raise

    def _train(self, locks: Sequence[GroupLock]) -> None:
        self.report({"event": "start", "step": self.trainer.step})
        self.training = True
        self._reported = (self.trainer.step, self.seconds)
        saved, steps, interval = time.monotonic(), self.task.steps, self.task.eval_interval
        while self.trainer.step < steps and len(self.diverged) < len(self.folders):
            started = time.perf_counter()
            before = self.trainer.step
            self._advance(min(interval - before % interval, steps - before))
            self.seconds += time.perf_counter() - started
            step = self.trainer.step
            self._progress(before, step)
            evaluated = step % interval == 0 or step == steps
            if evaluated:
                self._log(step)
                self._evaluate(step)
            stopping = self.stop_requested and step < steps  # the flag may change any moment
            if evaluated or stopping or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                for lock in locks:
                    lock.check()
                going_on = "killed" if stopping else "running"
                self.checkpoint("done" if step == steps else going_on)
                saved = time.monotonic()
            if stopping:
                raise Interrupted
        self.checkpoint("done")

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

    def _progress(self, before: int, step: int) -> None:
        """Now and then, however many updates the last call made."""
        if before // _PROGRESS_STEPS < step // _PROGRESS_STEPS:
            self._stop_broken()
            (last, then), self._reported = self._reported, (step, self.seconds)
            rate = (step - last) / max(self.seconds - then, 1e-9)
            self.report({"event": "progress", "step": step, "rate": rate})

    def _stop_broken(self) -> None:
        for i, reason in self.trainer.broken().items():
            if i not in self.diverged:
                self._diverge(i, reason)

    def _log(self, step: int) -> None:
        self._stop_broken()
        metrics = self.trainer.read_metrics()
        for i, folder in enumerate(self.folders):
            if i in self.diverged:
                continue
            folder.append_metrics((step, name, values[i]) for name, values in metrics.items())

    # -------------------------------------------------------------- evaluation

    def _prepare_evaluation(self) -> None:
        self.policies: list[tuple[float | None, Policy]] = []
        env_id = self.task.env_id or self.dataset.env_id
        if env_id is None:
            return
        episodes = self.task.eval_episodes
        self.evaluator = Evaluator(env_id, self.task.seeds, episodes, self.dataset.horizon)
        if not self.recipe.sequence:
            self.policies = [(None, MarkovPolicy(self.trainer, self.problem, episodes))]
            return
        for target in self.hyper.target_returns:
            policy = SequencePolicy(
                self.trainer,
                self.problem,
                episodes,
                context=self.hyper.context,
                target=target,
                scale=self.hyper.return_scale,
            )
            self.policies.append((target, policy))

    def _evaluate(self, step: int) -> None:
        """Scores of the first policy are the run's; other targets are logged as metrics."""
        last = None
        for i, (target, policy) in enumerate(self.policies):
            rollouts = self.evaluator.run(policy, step)
            if i == 0:
                self._write_scores(step, rollouts)
                last = self._mean_score(rollouts)
            if target is not None:
                name = f"eval/return_at_{target:g}"
                for j, folder in enumerate(self.folders):
                    if j not in self.diverged:
                        folder.append_metrics([(step, name, float(rollouts.returns[j].mean()))])
        if last is not None:
            self.report({"event": "score", "step": step, "score": last, "unit": self.dataset.unit})

    def _score(self, value: float) -> float | None:
        return self.dataset.normalize(value)

    def _mean_score(self, rollouts: Any) -> float:
        mean = float(rollouts.returns.mean())
        score = self._score(mean)
        return mean if score is None else score

    def _write_scores(self, step: int, rollouts: Any) -> None:
        for i, folder in enumerate(self.folders):
            if i in self.diverged:
                continue
            pairs = zip(rollouts.returns[i].tolist(), rollouts.lengths[i].tolist(), strict=True)
            folder.append_scores(
                (step, e, ret, length, self._score(ret)) for e, (ret, length) in enumerate(pairs)
            )


def _check_untrained(folder: RunFolder) -> None:
    status = folder.status()
    if status is not None and status["step"] > 0:
        raise RunError(
            f"{folder.path}: holds {status['step']} steps and no checkpoint covers them: another "
            "runner trained it meanwhile (repeat the command), or its checkpoint was removed "
            "(move the folder away to start again)"
        )


def _tuples(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in hyper.items()}
