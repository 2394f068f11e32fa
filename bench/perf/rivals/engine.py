"""The engine: the program that trains under ``bench run``, with a recipe's paper profile."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench.engine import cpu
from bench.engine.agent import Agent, Terms
from bench.engine.problem import training_table
from bench.engine.trainer import Trainer
from bench.perf.counters import count
from bench.perf.protocol import Program, serve
from bench.perf.work import EPISODE, Work, arrays, check_device, program
from bench.recipe import Problem, load_recipe
from rlobj import LossModule
from rlobj.specs import Bounded, Categorical

DELAY = 2  # updates from one of TD3's policy to the next


def transitions(work: Work) -> TensorDict:
    """The work's rows in the form in which datasets are loaded."""
    found = arrays(work)
    last = found["last"]
    data = {
        "observation": found["observation"],
        "action": found["action"],
        "next": {
            "observation": found["after"],
            "reward": found["reward"],
            "done": last,
            "terminated": torch.zeros_like(last),
            "truncated": last,
        },
        "t": found["step"],
        "episode": torch.arange(work.rows) // EPISODE,
        "valid_next": torch.ones(work.rows, dtype=torch.bool),
    }
    return TensorDict(data, [work.rows])


def losses_only(terms: Terms) -> Terms:
    """The same terms without those that are only logged."""

    def chosen(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
        return {k: v for k, v in terms(loss, batch).items() if k.startswith(("loss_", "set_"))}

    return chosen


def space(work: Work) -> Bounded | Categorical:
    if work.discrete:
        return Categorical(work.action)
    return Bounded(-torch.ones(work.action), torch.ones(work.action))


def trainer(work: Work, *, metrics: bool = True) -> Trainer:
    recipe = load_recipe(work.algorithm)
    hyper = recipe.hyper()
    problem = Problem(work.observation, space(work), EPISODE)
    table = training_table(recipe, hyper, transitions(work), problem)

    def build_agent() -> Agent:
        agent: Agent = recipe.build(hyper, problem)
        if metrics:
            return agent
        phases = [dataclasses.replace(p, terms=losses_only(p.terms)) for p in agent.phases]
        return dataclasses.replace(agent, phases=tuple(phases))

    made = Trainer(
        build_agent,
        list(range(work.seeds)),
        recipe.sampler(hyper, table, torch.device(work.device)),
        total_steps=recipe.steps,
        device=work.device,
    )
    made.step = max(p.phase.first for p in made.phases) - 1  # where its last stage begins
    return made


def without_metrics(work: Work) -> dict[str, float]:
    """Counts of a second program, which logs nothing but its losses."""
    plain = trainer(dataclasses.replace(work, rows=2 * EPISODE), metrics=False)
    for _ in range(DELAY):  # the first ones also reserve what the optimizers keep
        plain.update()
    return count(plain.update, DELAY)


def build(request: dict[str, Any]) -> Program:
    work = Work(**request)
    check_device(work.device)
    if work.device == "cpu":
        cpu.prepare()
    built = trainer(work)

    def weights() -> list[Tensor]:
        state = built.state()
        return [t for n, t in state.items() if not n.startswith(("optimizer.", "metrics."))]

    def block() -> int:
        """What `bench run` calls: on a GPU a captured block of updates, elsewhere one update."""
        before = built.step
        built.advance(built.noise.size)
        return built.step - before

    found = program(work, built.update, weights, ("tensordict",))
    counters = {**found.counters, "without_metrics": lambda _: without_metrics(work)}
    counted = max(DELAY, built.noise.size)  # noise is drawn a block of updates ahead
    return dataclasses.replace(found, counters=counters, block=block, counted=counted)


if __name__ == "__main__":
    sys.exit(serve(build))
