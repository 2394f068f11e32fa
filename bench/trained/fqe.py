"""Fitted Q evaluation: what a policy would earn, estimated from its data alone.

Le et al. 2019 (arXiv:1903.08738) fit Q of a policy by repeated regression. As in Voloshin et al.
2021 (arXiv:1911.06854) and Fu et al. 2021 (arXiv:2103.16596), here gradient steps follow a delayed
copy. All policies on a dataset are one program: each has a critic of its own, and all of them the
same first weights and minibatches, so that policies differ by what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.engine.sampling import TransitionSampler
from bench.engine.trainer import Trainer
from bench.errors import ConfigError
from bench.trained.run import Trained
from rlobj import LossModule
from rlobj._parts import part
from rlobj.modules import ValueOperator

_ROWS = 4096  # that a policy acts on at a time
_AFTER: NestedKey = ("next", "action")


@dataclass(frozen=True)
class Settings:
    """Of the critic. ``gamma`` is the evaluation's discount."""

    steps: int = 20_000
    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    tau: float = 0.005
    gamma: float = 0.99
    seed: int = 0


class FittedQLoss(LossModule):
    """``(Q(s, a) - r - gamma (1 - terminated) Q'(s', pi(s')))^2`` with a delayed Q'.

    Args:
        qvalue_network: from ``"observation"`` and ``"action"`` to ``"state_action_value"``
            ``[*batch, 1]``.
        gamma: discount per step.
        low, high: what a discounted sum of rewards of the data can be: Q' is kept within.

    Reads ``("next", "action")`` ``[*batch, n]``, the policy's action at s'.
    """

    out_keys = ["loss_qvalue"]

    def __init__(self, qvalue_network: nn.Module, gamma: float, low: float, high: float) -> None:
        super().__init__()
        self.convert_to_functional(qvalue_network, "qvalue_network", create_target_params=True)
        self.discount, self.bounds = gamma, (low, high)

    def value(self, tensordict: TensorDictBase, target: bool = False) -> Tensor:
        """Q(s, a), ``[*batch]``."""
        out = self.run_network("qvalue_network", tensordict, target=target)
        return out["state_action_value"].squeeze(-1)

    @part
    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Per sample, ``[*batch]``."""
        after = tensordict.get("next")
        with torch.no_grad():
            then = self.value(after, target=True).clamp(*self.bounds)
            alive = 1 - after.get("terminated").to(then.dtype).squeeze(-1)
            wanted = after.get("reward").squeeze(-1) + self.discount * alive * then
        return (self.value(tensordict) - wanted).pow(2), {}

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return TensorDict({"loss_qvalue": self.qvalue_loss(tensordict)[0]})


class _Actions(TransitionSampler):
    """Minibatches in which every critic finds its own policy's next actions."""

    def __init__(self, table: TensorDict, actions: Tensor, batch_size: int, device: Any) -> None:
        super().__init__(table, batch_size, device)
        self.actions = actions.to(device)  # [n_policies, rows, n]

    @property
    def keys(self) -> Sequence[NestedKey]:
        return [*super().keys, _AFTER]

    def leaves(self, index: Tensor) -> list[Tensor]:
        own = torch.arange(len(index), device=index.device).unsqueeze(1)
        return [*super().leaves(index), self.actions[own, index]]


def estimate(
    runs: Sequence[Trained],
    dataset: Any,
    settings: Settings,
    told: Callable[[int], None] = lambda step: None,
    device: str = "cpu",
) -> list[float]:
    """The mean over the data's first states of ``Q(s, pi(s))`` for each policy: an estimate of its
    discounted return, in the units of the data; nan where it diverged.

    Args:
        runs: policies without memory, trained on the dataset.
        told: called with the number of updates now and then.

    Raises:
        ConfigError: for a policy with a memory: what it does depends on more than the state.
    """
    data = dataset.transitions
    first = data["observation"][(data["t"] == 0).nonzero().squeeze(-1)]
    data = data[data["valid_next"].nonzero().squeeze(-1)]
    table, scale = _table(data, runs[0])
    after = torch.stack([acted(run, data["next", "observation"]) for run in runs])
    sampler = _Actions(table, after, settings.batch_size, device)
    reward = table["next", "reward"]
    bounds = [float(x) / (1 - settings.gamma) for x in (reward.min(), reward.max())]
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)

    def build() -> Agent:
        inputs = table["observation"].shape[-1] + table["action"].shape[-1]
        net = ValueOperator(nets.mlp(inputs, 1, settings.hidden), in_keys=["observation", "action"])
        loss = FittedQLoss(net, settings.gamma, low, high)
        group = Group(("qvalue_network_params",), settings.lr)
        phase = Phase("fit", _terms, (group,), targets=("qvalue_network",))
        return Agent(loss, (phase,), settings.tau, lambda loss, observed: observed["observation"])

    seeds = [settings.seed] * len(runs)
    trainer = Trainer(build, seeds, sampler, total_steps=settings.steps, device=device)
    while trainer.step < settings.steps:
        trainer.advance(settings.steps - trainer.step)
        if trainer.step % 100 == 0:
            told(trainer.step)
    start = torch.stack([acted(run, first) for run in runs])
    shown = _standardised(first, data["observation"]).flatten(1).expand(len(runs), -1, -1)
    return [scale * v for v in _values(trainer, shown.to(device), start.to(device))]


def _terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    return {"loss_qvalue": loss.qvalue_loss(batch)[0]}


def _table(data: TensorDict, run: Trained) -> tuple[TensorDict, float]:
    """What the critic learns from: observations of mean 0 and sd 1, rewards of sd 1; and the
    rewards' own sd."""
    scale = float(data["next", "reward"].std()) or 1.0
    seen = data["observation"]
    return TensorDict(
        {
            "observation": _standardised(seen, seen).flatten(1),
            "action": _vector(data["action"], run),
            "next": {
                "observation": _standardised(data["next", "observation"], seen).flatten(1),
                "reward": data["next", "reward"] / scale,
                "terminated": data["next", "terminated"],
            },
        },
        data.batch_size,
    ), scale


def _standardised(observation: Tensor, of: Tensor) -> Tensor:
    return (observation - of.mean(0)) / (of.std(0) + 1e-3)


def _vector(action: Tensor, run: Trained) -> Tensor:
    """Actions as numbers ``[rows, n]``: discrete ones as one of n."""
    if not run.recipe.discrete:
        return action.float()
    return F.one_hot(action.long().reshape(len(action)), run.problem.n_actions).float()


def remembers(run: Trained) -> bool:
    return bool(run.recipe.sequence or run.agent.carried)


@torch.no_grad()
def acted(run: Trained, observation: Tensor) -> Tensor:
    """The policy's actions, ``[rows, n]`` float32, as evaluations take them."""
    if remembers(run):
        raise ConfigError(
            f"{run.name}: its policy remembers what it saw, so its value is no function of the "
            "state; fitted Q evaluation leaves it out"
        )
    found = []
    for rows in observation.split(_ROWS):
        policy = run.policy(len(rows), alone=True)
        policy.reset(1, len(rows))
        action = policy.act(rows.reshape(1, len(rows), -1).float())
        found.append(_vector(action.reshape(len(rows), *action.shape[2:]), run))
    return torch.cat(found)


@torch.no_grad()
def _values(trainer: Trainer, observation: Tensor, action: Tensor) -> list[float]:
    """Means over ``[n_policies, n, ...]`` states and actions."""
    loss, found = trainer.agent.loss, []
    for i in range(len(action)):
        own = {k: t[i] for k, t in trainer.tensors.items()}
        batch = TensorDict({"observation": observation[i], "action": action[i]}, action.shape[1:2])
        with loss.bind(own):
            found.append(float(loss.value(batch).mean()))
    return found
