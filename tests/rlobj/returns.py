"""Random rollouts, and returns as sums written from the papers, one Python number at a time.

Nothing but the networks comes from rlobj.
"""

import math
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rlobj.modules import ValueOperator
from tests.rlobj import cases
from tests.rlobj.cases import ACT, OBS

NUMBERS = (0.0, 0.9, 1.0)


class Rollout:
    """Random rewards, values and flags; some steps terminated, some truncated."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(5, *shape, generator=generator)
        self.value, self.after, self.reward, self.log_pi, self.log_mu = draws
        kind = torch.rand(shape, generator=generator)
        self.done, self.terminated = kind < 0.4, kind < 0.2
        self.rate = torch.rand(shape, generator=generator)

    @property
    def batch(self) -> tuple[Tensor, ...]:
        return self.after, self.reward, self.done, self.terminated

    @property
    def scalars(self) -> list[float | Tensor]:
        return [*NUMBERS, torch.tensor(0.7), self.rate]


def slowly(function: Callable, shape: tuple[int, ...], time_dim: int, *args: object) -> Tensor:
    """``function`` of lists of numbers, one call per series of the tensors."""
    rows = [torch.as_tensor(x).expand(shape).movedim(time_dim, -1) for x in args]
    flat = [x.reshape(-1, x.shape[-1]).tolist() for x in rows]
    found = torch.tensor([function(*series) for series in zip(*flat, strict=True)])
    return found.reshape(rows[0].shape).movedim(-1, time_dim)


def slow_lambda(
    gamma: list, lmbda: list, after: list, reward: list, done: list, end: list, rolling: bool = True
) -> list:
    """Forward view: walk from every start, adding what each step contributes."""
    found = []
    for start in range(len(reward)):
        total, weight = 0.0, 1.0
        for i in range(start, len(reward)):
            g, lam = (gamma[i], lmbda[i]) if rolling else (gamma[start], lmbda[start])
            value = 0.0 if end[i] else after[i]
            total += weight * reward[i]
            if done[i] or i == len(reward) - 1:
                total += weight * g * value
                break
            total += weight * g * (1 - lam) * value
            weight *= g * lam
        found.append(total)
    return found


def slow_td1(gamma: list, *batch: list, rolling: bool = True) -> list:
    return slow_lambda(gamma, [1.0] * len(gamma), *batch, rolling=rolling)


def slow_gae(
    gamma: list, lmbda: list, value: list, after: list, reward: list, done: list, end: list
) -> list:
    """Schulman et al. 2016, eq. 16: discounted sum of temporal differences."""
    found = []
    for start in range(len(reward)):
        total, weight = 0.0, 1.0
        for i in range(start, len(reward)):
            total += weight * (reward[i] + gamma[i] * (0.0 if end[i] else after[i]) - value[i])
            if done[i]:
                break
            weight *= gamma[i] * lmbda[i]
        found.append(total)
    return found


def slow_vtrace(rho_bar: float, c_bar: float) -> Callable:
    """Espeholt et al. 2018, eq. 1, as a sum; the advantage of section 3.2 beside it."""

    def targets(gamma: list, pi: list, mu: list, value: list, after: list, *rest: list) -> tuple:
        reward, done, end = rest
        steps = range(len(reward))
        ratio = [math.exp(p - m) for p, m in zip(pi, mu, strict=True)]
        goal = [gamma[i] * (0.0 if end[i] else after[i]) for i in steps]
        delta = [min(rho_bar, ratio[i]) * (reward[i] + goal[i] - value[i]) for i in steps]
        v = []
        for start in steps:
            total, weight = value[start], 1.0
            for i in range(start, len(reward)):
                total += weight * delta[i]
                if done[i]:
                    break
                weight *= gamma[i] * min(c_bar, ratio[i])
            v.append(total)
        advantage = []
        for i in steps:
            follows = v[i + 1] if not done[i] and i + 1 < len(v) else after[i]
            goal_i = reward[i] + gamma[i] * (0.0 if end[i] else follows)
            advantage.append(min(rho_bar, ratio[i]) * (goal_i - value[i]))
        return advantage, v

    return targets


def slow_reward2go(gamma: list, reward: list, done: list) -> list:
    no = [False] * len(reward)
    return slow_lambda(gamma, [1.0] * len(gamma), [0.0] * len(reward), reward, done, no)


# batches for estimators and losses


class Counting(nn.Module):
    """A linear value function that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(OBS, 1), 0

    def forward(self, observation: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(observation)


def network() -> ValueOperator:
    return ValueOperator(Counting())


def rollout(shape: tuple[int, ...] = (3, 5), seed: int = 0) -> TensorDict:
    """Consecutive steps along the last axis: s' of a step is s of the next unless it is done."""
    data, generator = Rollout((*shape, 1), seed), torch.Generator().manual_seed(seed)
    states = torch.randn(2, *shape, OBS, generator=generator)
    now, after = states
    follows = torch.cat([now[..., 1:, :], after[..., -1:, :]], -2)
    result = {
        "reward": data.reward,
        "done": data.done,
        "terminated": data.terminated,
        "observation": torch.where(data.done, after, follows),
    }
    low, high = torch.tensor(cases.LOW), torch.tensor(cases.HIGH)
    action = low + (high - low) * torch.rand(*shape, ACT, generator=generator)
    log_mu = data.log_mu.squeeze(-1) / 2 - 2.4  # about as likely as under the tests' actors
    batch = {"observation": now, "action": action, "action_log_prob": log_mu}
    return TensorDict({**batch, "next": TensorDict(result, shape)}, shape)
