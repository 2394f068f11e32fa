"""QMIX: one reward for a team, each agent with its own values, mixed monotonically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from bench.engine.agent import Agent, Group, Phase
from bench.envs.two_step import Layout
from bench.errors import ConfigError
from bench.recipe import Problem, Recipe
from bench.recipes._common import plain_table, transition_sampler
from rlobj import LossModule, QMixerLoss
from rlobj.modules import MultiAgentMLP, QMixer, QValueModule, SafeSequential, VDNMixer

_MIXERS = ("qmix", "vdn", "none")


@dataclass(frozen=True)
class Hyper:
    """Rashid et al. 2018 (arXiv:1803.11485), appendix, with feed-forward agents (the two-step game
    needs no memory), Adam, and target networks that follow slowly. ``layout`` says how a row holds
    the team, see :class:`bench.envs.two_step.Layout`: agents, numbers that each observes, numbers
    of the state, actions of each."""

    layout: tuple[int, ...] = (2, 5, 3, 2)
    mixer: str = "qmix"  # or "vdn" (Sunehag et al. 2018), the sum; or "none": independent learners
    hidden: tuple[int, ...] = (64,)
    mixing: int = 32  # width of the mixing network
    batch_size: int = 32
    lr: float = 5e-4
    gamma: float = 0.99
    tau: float = 0.005
    normalize: bool = False
    normalize_eps: float = 1e-3


def team(batch: TensorDictBase, layout: Layout, alone: bool = False) -> TensorDict:
    """Rows taken apart: agents' observations and actions, states. ``alone``: every agent is a row,
    ``[*batch, agents]``, and a team of its own that gets the team's reward."""

    def own(value: Tensor, axis: int) -> Tensor:
        return value.unsqueeze(axis) if alone else value

    def common(value: Tensor) -> Tensor:
        shape = (*value.shape[:-1], layout.agents, value.shape[-1])
        return value.unsqueeze(-2).expand(shape) if alone else value

    def observed(joint: Tensor) -> dict[str, Any]:
        agents = {"observation": own(layout.observations(joint), -2)}
        return {"agents": agents, "state": common(layout.states(joint))}

    after = {k: common(batch["next", k]) for k in ("reward", "done", "terminated")}
    after |= observed(batch["next", "observation"])
    entries = {**observed(batch["observation"]), "next": after}
    entries["agents"]["action"] = own(layout.split(batch["action"]), -1)
    shape = (*batch.batch_size, layout.agents) if alone else batch.batch_size
    return TensorDict(entries, shape)


def build(hp: Hyper, problem: Problem) -> Agent:
    if hp.mixer not in _MIXERS:
        raise ConfigError(f"--set mixer={hp.mixer}: qmix expects one of {', '.join(_MIXERS)}")
    layout = Layout(*hp.layout)
    if (layout.width, layout.actions**layout.agents) != (problem.observation, problem.n_actions):
        raise ConfigError(
            f"--set layout={','.join(map(str, hp.layout))}: the data have {problem.observation} "
            f"numbers and {problem.n_actions} joint actions per row, this team has {layout.width} "
            f"and {layout.actions**layout.agents}"
        )
    alone = hp.mixer == "none"
    net = MultiAgentMLP(
        layout.observation,
        layout.actions,
        1 if alone else layout.agents,
        centralized=False,
        share_params=True,
        num_cells=list(hp.hidden),
    )
    read, written = ("agents", "observation"), ("agents", "action_value")
    values = TensorDictModule(net, in_keys=[read], out_keys=[written])
    made = [("agents", "action"), written, ("agents", "chosen_action_value")]
    chooser = QValueModule("categorical", action_value_key=written, out_keys=made)
    local = SafeSequential(values, chooser)
    loss = QMixerLoss(local, _mixer(hp, layout), action_space="categorical")
    loss.make_value_estimator(gamma=hp.gamma)

    def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
        value, info = loss.qvalue_loss(team(batch, layout, alone))
        return {"loss_qvalue": value, "q": info["pred_value"].mean()}

    def greedy(loss: LossModule, observed: TensorDict) -> Tensor:
        """The joint action of every agent's best, int64 ``[*batch]``."""
        seen = layout.observations(observed["observation"])
        own = TensorDict({read: seen.unsqueeze(-2) if alone else seen}, observed.batch_size)
        best = loss.run_network("local_value_network", own)[written].argmax(-1)
        return layout.join(best.squeeze(-1) if alone else best)

    nets = ("local_value_network", "mixer_network")
    groups = (Group(tuple(f"{net}_params" for net in nets), hp.lr),)
    return Agent(loss, (Phase("update", terms, groups, targets=nets),), hp.tau, greedy)


def _mixer(hp: Hyper, layout: Layout) -> TensorDictModule:
    value, total = ("agents", "chosen_action_value"), "chosen_action_value"
    if hp.mixer != "qmix":  # the sum over an agent that is alone is itself
        agents = 1 if hp.mixer == "none" else layout.agents
        return TensorDictModule(VDNMixer(agents, None), in_keys=[value], out_keys=[total])
    net = QMixer((layout.state,), hp.mixing, layout.agents, None)
    return TensorDictModule(net, in_keys=[value, "state"], out_keys=[total])


RECIPE = Recipe(
    name="qmix",
    label="QMIX",
    paper="Rashid et al. 2018, QMIX: Monotonic Value Function Factorisation, arXiv:1803.11485",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    discrete=True,
    families=("twostep",),
    quick={},
    quick_steps=10_000,
)
