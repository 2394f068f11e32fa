"""BC: behaviour cloning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import actor_output, transition_sampler
from rlobj import BCLoss, LossModule


@dataclass(frozen=True)
class Hyper:
    """The BC baseline of Fujimoto & Gu 2021 (arXiv:2106.06860) as CORL runs it: TD3+BC's actor
    trained on the squared error alone."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    normalize: bool = True
    normalize_eps: float = 1e-3


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, _ = loss.actor_loss(batch)
    return {"loss_bc": value}


def table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    """Every row: imitation needs no next observation."""
    return transitions.select("observation", "action")


def build(hp: Hyper, problem: Problem) -> Agent:
    actor = nets.deterministic_actor(problem.observation, problem.action, hp.hidden)
    phase = Phase("actor", terms, (Group(("actor_network_params",), hp.lr),))
    return Agent(BCLoss(actor), (phase,), policy=actor_output)


RECIPE = Recipe(
    name="bc",
    label="BC",
    paper="Fujimoto & Gu 2021, arXiv:2106.06860 (baseline)",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128), "batch_size": 128},
    published=Published(
        "Kostrikov et al. 2021, arXiv:2110.06169, table 1 (no spread printed)",
        {
            "d4rl/halfcheetah-medium-v2": (42.6, None, None),
            "d4rl/halfcheetah-medium-replay-v2": (36.6, None, None),
            "d4rl/halfcheetah-medium-expert-v2": (55.2, None, None),
            "d4rl/hopper-medium-v2": (52.9, None, None),
            "d4rl/hopper-medium-replay-v2": (18.1, None, None),
            "d4rl/hopper-medium-expert-v2": (52.5, None, None),
            "d4rl/walker2d-medium-v2": (75.3, None, None),
            "d4rl/walker2d-medium-replay-v2": (26.0, None, None),
            "d4rl/walker2d-medium-expert-v2": (107.5, None, None),
        },
    ),
)
