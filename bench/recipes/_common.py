"""What recipes share: training tables, samplers, evaluated policies, learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from bench.engine.agent import Agent, Group, Phase, Schedule, Terms
from bench.engine.sampling import TransitionSampler
from bench.recipe import Problem
from rlobj import LossModule
from rlobj.modules import deterministic_sample


@dataclass(frozen=True)
class MultiStep:
    """What recipes have in common whose targets bootstrap from the next observation: how many of
    the data's rewards stand before it. The papers' own is 1; behind it the actions are the data's,
    without correction, as in Rainbow (Hessel et al. 2018, arXiv:1710.02298)."""

    n_step: int = 1


TRANSITION_KEYS = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "done"),
    ("next", "terminated"),
    "valid_next",
)


def plain_table(hp: Any, transitions: TensorDict) -> TensorDict:
    """Transitions as they are."""
    return transitions.select(*TRANSITION_KEYS)


def scaled_table(transitions: TensorDict, scale: float, bias: float) -> TensorDict:
    """Transitions with rewards ``scale * r + bias``."""
    table = transitions.select(*TRANSITION_KEYS)
    return table.set(("next", "reward"), table["next", "reward"] * scale + bias)


def episode_returns(transitions: TensorDict) -> Tensor:
    """Undiscounted return of each episode, float64 ``[episodes]``."""
    reward = transitions["next", "reward"].squeeze(-1).double()
    empty = torch.zeros(int(transitions["episode"].max()) + 1, dtype=torch.float64)
    return empty.index_add_(0, transitions["episode"], reward)


def discounted_returns(
    table: TensorDict, transitions: TensorDict, gamma: float, *, endless: bool = False
) -> Tensor:
    """``sum_k gamma^k r_{t+k}`` to the end of the episode, of the table's rewards, ``[n, 1]``.

    Args:
        endless: the last reward of an episode that did not terminate is paid for ever.
    """
    reward = table["next", "reward"].squeeze(-1).double().tolist()
    terminated = transitions["next", "terminated"].squeeze(-1).tolist()
    episode = transitions["episode"].tolist()
    found, following = [0.0] * len(reward), 0.0
    for i in reversed(range(len(reward))):
        if i + 1 == len(reward) or episode[i] != episode[i + 1]:
            following = reward[i] / (1 - gamma) if endless and not terminated[i] else 0.0
        following = found[i] = reward[i] + gamma * following
    return torch.tensor(found).unsqueeze(-1)


def next_actions(table: TensorDict, transitions: TensorDict) -> TensorDict:
    """The table with the action that the data took next. Rows without one (the last of an episode
    that did not terminate) cannot bootstrap and are marked so."""
    action, episode = transitions["action"], transitions["episode"]
    following = torch.cat([action[1:], action[-1:]])
    inside = torch.cat([episode[1:] == episode[:-1], torch.zeros(1, dtype=torch.bool)])
    known = inside | transitions["next", "terminated"].squeeze(-1)
    table = table.set(("next", "action"), following)
    return table.set("valid_next", table["valid_next"] & known)


def transition_sampler(
    hp: Any, table: TensorDict, device: torch.device, file: Path | None = None
) -> TransitionSampler:
    return TransitionSampler(table, hp.batch_size, device, file)


def actor_output(loss: LossModule, observed: TensorDict) -> Tensor:
    """The action of a deterministic actor."""
    return loss.run_network("actor_network", observed)["action"]


def distribution_mode(loss: LossModule, observed: TensorDict) -> Tensor:
    """The deterministic action of a stochastic actor."""
    return deterministic_sample(loss.distribution(observed))


def likeliest(loss: LossModule, observed: TensorDict) -> Tensor:
    """The action of largest probability, int64 ``[*batch]``."""
    return loss.distribution(observed).logits.argmax(-1)  # type: ignore[attr-defined]


def largest_action(problem: Problem) -> float:
    return float(problem.action.high.abs().max())


def smoothing(hp: Any, problem: Problem) -> dict[str, Any]:
    """TD3's bounds and target smoothing, whose noise the papers give in units of the largest
    action."""
    largest = largest_action(problem)
    noise = {name: getattr(hp, name) * largest for name in ("policy_noise", "noise_clip")}
    return {"action_spec": problem.action, **noise}


def delayed_actor(
    loss: LossModule, hp: Any, critic: Terms, actor: Terms, critic_lr: float, actor_lr: float
) -> Agent:
    """TD3's update: critics at every step; actor and all targets at every ``hp.policy_every``."""
    loss.make_value_estimator(gamma=hp.gamma)
    first = Phase("critic", critic, (Group(("qvalue_network_params",), critic_lr),))
    second = Phase(
        "actor",
        actor,
        (Group(("actor_network_params",), actor_lr),),
        every=hp.policy_every,
        targets=("qvalue_network", "actor_network"),
    )
    return Agent(loss, (first, second), hp.tau, actor_output)


def cosine(steps: int) -> Schedule:
    """Cosine decay to zero at ``steps`` (0: the run's last step)."""

    def factor(step: int, total: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / (steps or total))))

    return factor


def warmup(steps: int) -> Schedule:
    """Linear from 0 to 1 over ``steps`` updates, then constant."""

    def factor(step: int, total: int) -> float:
        return min(1.0, (step + 1) / max(1, steps))

    return factor
