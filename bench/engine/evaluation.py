"""Evaluations of a cell: what they need, those under way, and running them in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.engine.agent import Agent
from bench.engine.problem import from_json, to_json
from bench.evaluate import Evaluator, Rollouts
from bench.policies import make_policies
from bench.recipe import Problem, Recipe, load_recipe

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Setup:
    """What a cell's evaluations need to know."""

    algorithm: str
    hyper: dict[str, Any]
    problem: Problem
    env_id: str
    horizon: int | None
    seeds: tuple[int, ...]
    episodes: int

    def prepare(
        self, agent: Agent | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> InProcess:
        """Environments, and policies that read ``tensors`` (``[n_seeds, ...]`` each, of the loss
        of ``agent``); without these, tensors of its own, to be filled."""
        recipe = load_recipe(self.algorithm)
        hyper = as_hyper(recipe, self.hyper)
        agent = agent or recipe.build(hyper, self.problem)
        if tensors is None:
            own, count = agent.loss.tensors(), len(self.seeds)
            tensors = {name: torch.stack([t.detach()] * count) for name, t in own.items()}
        policies = make_policies(recipe, hyper, agent, tensors, self.problem, self.episodes)
        evaluator = Evaluator(self.env_id, self.seeds, self.episodes, self.horizon)
        return InProcess(evaluator, policies, tensors)

    def to_json(self) -> dict[str, Any]:
        """Numbers read back bit for bit."""
        return {**vars(self), "problem": to_json(self.problem)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Setup:
        problem = from_json(data["problem"])
        return cls(**{**data, "problem": problem, "seeds": tuple(data["seeds"])})


def as_hyper(recipe: Recipe, values: Mapping[str, Any]) -> Any:
    """The recipe's hyper-parameters from JSON, which has no tuples."""
    return recipe.hyper(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class Runner(Protocol):
    """Evaluates all seeds at a step, once per policy.

    Attributes:
        reads: names of the tensors that policies read: ``start`` gets copies of them.
        limit: how many evaluations may be under way before training has to wait.
    """

    @property
    def reads(self) -> Sequence[str]: ...

    limit: int

    def start(self, step: int, tensors: Mapping[str, Tensor]) -> list[Future[Rollouts]]: ...

    def close(self) -> None: ...


class InProcess:
    """Evaluates at once, reading the tensors where they are."""

    limit = 0

    def __init__(
        self, evaluator: Evaluator, policies: Sequence[Any], tensors: Mapping[str, Tensor]
    ) -> None:
        self.evaluator, self.policies, self.tensors = evaluator, policies, tensors
        used = {name for policy in policies for name in policy.program.reads}
        self.reads: Sequence[str] = [name for name in tensors if name in used]

    def start(self, step: int, tensors: Mapping[str, Tensor]) -> list[Future[Rollouts]]:
        results: list[Future[Rollouts]] = [Future() for _ in self.policies]
        for policy, result in zip(self.policies, results, strict=True):
            result.set_result(self.evaluator.run(policy, step))
        return results

    def close(self) -> None:
        self.evaluator.close()


@dataclass
class Evaluation:
    """A step's evaluation whose rows are not written yet, and all it takes to repeat it.

    ``alive`` are the positions in the group that had not diverged, ``metrics`` one number per
    seed and name, ``tensors`` what the policies read.
    """

    step: int
    alive: list[int]
    metrics: dict[str, list[float]]
    tensors: dict[str, Tensor]
    results: list[Future[Rollouts]] = field(default_factory=list)


class Pending:
    """Evaluations whose rows are not written yet, in the order of their steps.

    Checkpoints hold them (``tensors`` and ``meta``): what a run that was killed had not written is
    evaluated again.
    """

    def __init__(self, write: Callable[[Evaluation, list[Rollouts]], None]) -> None:
        self._write = write
        self._waiting: list[Evaluation] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def written(self, step: int) -> int:
        """Up to which step, of those up to ``step``, all rows are written."""
        return self._waiting[0].step - 1 if self._waiting else step

    def concerns(self, seed: int) -> bool:
        """Whether rows of the seed at this position in the group are still to come."""
        return any(seed in evaluation.alive for evaluation in self._waiting)

    def tensors(self) -> dict[str, Tensor]:
        return {f"pending.{e.step}.{k}": t for e in self._waiting for k, t in e.tensors.items()}

    def meta(self) -> list[dict[str, Any]]:
        return [
            {
                "step": e.step,
                "alive": e.alive,
                "metrics": list(e.metrics.items()),  # the order of rows: JSON's keys are sorted
                "tensors": list(e.tensors),
            }
            for e in self._waiting
        ]

    def restore(self, meta: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Take up what a checkpoint holds; ``start_again`` has it evaluated."""
        for m in meta:
            held = {k: tensors[f"pending.{m['step']}.{k}"] for k in m["tensors"]}
            self._waiting.append(Evaluation(m["step"], m["alive"], dict(m["metrics"]), held))

    def start_again(self, runner: Runner) -> None:
        for e in self._waiting:
            e.results = runner.start(e.step, e.tensors)

    def add(
        self,
        runner: Runner | None,
        step: int,
        alive: list[int],
        metrics: dict[str, list[float]],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Start the evaluation of a step with the values that ``tensors`` have now; without a
        runner there are only metrics to write."""
        names = runner.reads if runner else ()
        copies = {k: tensors[k].detach().to("cpu", copy=True).contiguous() for k in names}
        evaluation = Evaluation(step, alive, metrics, copies)
        self._waiting.append(evaluation)
        if runner is not None:
            evaluation.results = runner.start(step, copies)

    def collect(self, allowed: int, stopping: Callable[[], bool]) -> None:
        """Write what is back, and wait while more than ``allowed`` are not, unless ``stopping``.

        Raises whatever kept an evaluation from its results.
        """
        while self._waiting:
            results = self._waiting[0].results
            if all(result.done() for result in results):
                self._write(self._waiting[0], [result.result() for result in results])
                del self._waiting[0]
            elif len(self._waiting) <= allowed or stopping():
                return
            else:
                wait(results, _POLL_SECONDS)
