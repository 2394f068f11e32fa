"""Dreamer on stored sequences: a world model learned from windows of a fixed dataset, an actor and
a value function learned in what it imagines.

The authors' agent collects data all the while, which corrects what the model dreams up; here the
data stay as they are. That makes it offline model-based RL without pessimism: nothing keeps the
actor away from where the model is wrong for lack of data. Where the data are an expert's, who
never lets a pole fall, the model learns that poles do not fall. Episodes never end in imagination
(the authors' default, too), so it suits tasks without terminal states.

Dreams start at the data's states whatever the actor does, so the values that end them are of states
that the value function is seldom trained on. As in the paper, it need not converge then: on
Pendulum it valued a spin at full speed above what came before, though the model knew that little
earns less, and the actor's tanh saturated there. Later means against this are off by default and on
in the quick profile: returns end in a slow copy of the value function (``tau``; DreamerV2,
arXiv:2010.02193, with the rate of DreamerV3, arXiv:2301.04104). Rewards of mean 0 (``reward_bias``;
Naik et al. 2024, arXiv:2405.09999), which Pendulum has in both profiles, make that three times as
fast, as values need not fall to their level first, and do not suffice alone. In the quick profile
the model is also learned first and then stays (``model_steps``, ``model_last``), as is usual on
fixed data (MOPO, Yu et al. 2020, arXiv:2005.13239).

Other than in the paper, pictures are flattened: encoder and decoder are dense, as they are for
vectors, which suits small ones. Evaluated actions follow from the mean of the posterior state,
where the authors draw it. ``python -m bench.dreams RUN`` compares imagined with real returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from bench.engine.agent import Agent, Group, Parts, Phase
from bench.engine.sampling import WindowSampler
from bench.recipe import Problem, Recipe
from rlobj import DreamerActorLoss, DreamerModelLoss, DreamerValueLoss
from rlobj.envs import DreamerEnv
from rlobj.modules import (
    MLP,
    DreamerActor,
    ProbabilisticActor,
    RSSMPosterior,
    RSSMPrior,
    RSSMRollout,
    TanhNormal,
    WorldModelWrapper,
    deterministic_sample,
)

_SEEN = ("next", "observation")
_LATENT: list[NestedKey] = ["state", "belief"]
_AFTER: list[NestedKey] = [("next", "state"), ("next", "belief")]


@dataclass(frozen=True)
class Hyper:
    """Hafner et al. 2020 (arXiv:1912.01603), appendix A and the authors' code (danijar/dreamer).

    Observations and rewards are Gaussians of variance 1, so the fewer numbers an observation has
    and the smaller rewards are, the more the divergence weighs: the paper's ``kl_scale`` and
    ``free_nats`` are for pictures of 64 x 64 x 3. With them, a model of three numbers need not
    predict anything that the next observation corrects.
    """

    belief: int = 200  # size of the RSSM's deterministic part, and of its hidden layers
    state: int = 30  # of the stochastic one
    width: int = 400  # hidden layers of all other networks
    batch_size: int = 50
    length: int = 50  # of a window
    horizon: int = 15
    init_std: float = 5.0  # of the actor, before tanh
    lr: float = 6e-4  # of the world model
    actor_lr: float = 8e-5
    value_lr: float = 8e-5
    clip_norm: float = 100.0
    gamma: float = 0.99
    lmbda: float = 0.95
    free_nats: float = 3.0
    kl_scale: float = 1.0
    reward_scale: float = 1.0  # rewards are multiplied by it
    reward_bias: float = 0.0  # and this is added
    model_steps: int = 0  # updates of the world model before actor and value begin to learn
    model_last: int = 0  # its last update; 0: it learns as long as they do
    start_every: int = 1  # a dream starts at one in so many steps of a window, the last among them
    tau: float = 1.0  # how fast the values in returns follow the learned ones; 1: they are those
    held_out: int = 10  # every so many-th episode is kept to measure the model on; 0: none
    normalize: bool = True
    normalize_eps: float = 1e-3


def build(hp: Hyper, problem: Problem) -> Agent:
    model_group = Group(("model.world_model",), hp.lr)
    last = hp.model_last or None
    model = Phase("model", _model_terms(hp), (model_group,), last=last, clip_norm=hp.clip_norm)
    # of the same trajectories, as in the authors' code: both gradients, then both updates
    groups = (
        Group(("actor.actor_model",), hp.actor_lr),
        Group(("value.value_model",), hp.value_lr),
    )
    behavior = Phase(
        "behavior",
        _behavior_terms(hp),
        groups,
        first=hp.model_steps + 1,
        clip_norm=hp.clip_norm,
        follows=(("actor.value_model", "value.value_model"),),
    )
    carried = hp.state + hp.belief
    return Agent(_losses(hp, problem), (model, behavior), hp.tau, policy, carried)


def _losses(hp: Hyper, problem: Problem) -> Parts:
    """They share the prior and the reward model; returns end in a copy of the value network."""
    size = problem.action.shape[0]
    prior = RSSMPrior(problem.action, hp.belief, hp.belief, hp.state, action_dim=size)
    reward = _dense(hp, 2, 1)
    critic = TensorDictModule(_dense(hp, 3, 1), _LATENT, ["state_value"])
    model = DreamerModelLoss(
        _world_model(hp, problem, prior, reward),
        lambda_kl=hp.kl_scale,
        lambda_reco=0.5,  # as in the log-density of a Gaussian
        lambda_reward=0.5,
        free_nats=hp.free_nats,
        delayed_clamp=True,
    )
    model.set_keys(pixels="observation", reco_pixels="reconstruction")
    actor = DreamerActorLoss(
        _actor(hp, problem),
        deepcopy(critic),
        _dream(hp, prior, reward),
        imagination_horizon=hp.horizon,
    )
    actor.make_value_estimator(gamma=hp.gamma, lmbda=hp.lmbda)
    return Parts(model=model, value=DreamerValueLoss(critic, gamma=hp.gamma), actor=actor)


def _dream(hp: Hyper, prior: RSSMPrior, reward: nn.Module) -> DreamerEnv:
    """The world as the prior knows it."""
    dynamics = TensorDictModule(prior, [*_LATENT, "action"], ["_", "_", *_LATENT])
    earned = TensorDictModule(reward, _LATENT, ["reward"])
    world = WorldModelWrapper(TensorDictSequential(dynamics), earned)
    device = next(prior.parameters()).device
    return DreamerEnv(world, (hp.state,), (hp.belief,), device=device)


def _dense(hp: Hyper, depth: int, outputs: int, inputs: int = 0) -> MLP:
    """By default of state and belief."""
    return MLP(inputs or hp.state + hp.belief, outputs, depth, hp.width, nn.ELU)


def _world_model(
    hp: Hyper, problem: Problem, prior: RSSMPrior, reward: nn.Module
) -> WorldModelWrapper:
    posterior = RSSMPosterior(hp.belief, hp.state, rnn_hidden_dim=hp.belief, obs_embed_dim=hp.width)
    encoder = nn.Sequential(_dense(hp, 1, hp.width, problem.observation), nn.ELU())
    moments: list[NestedKey] = [("next", "prior_mean"), ("next", "prior_std")]
    after: list[NestedKey] = [("next", k) for k in ("posterior_mean", "posterior_std", "state")]
    parts = TensorDictSequential(
        TensorDictModule(encoder, [_SEEN], [("next", "encoded")]),
        RSSMRollout(
            TensorDictModule(prior, [*_LATENT, "action"], [*moments, "_", _AFTER[1]]),
            TensorDictModule(posterior, [_AFTER[1], ("next", "encoded")], after),
        ),
        TensorDictModule(_dense(hp, 2, problem.observation), _AFTER, [("next", "reconstruction")]),
    )
    return WorldModelWrapper(parts, TensorDictModule(reward, _AFTER, [("next", "reward")]))


def _actor(hp: Hyper, problem: Problem) -> ProbabilisticActor:
    net = DreamerActor(problem.action.shape[0], num_cells=hp.width, std_bias=hp.init_std)
    net(torch.zeros(hp.state), torch.zeros(hp.belief))  # its layers learn their sizes
    spec = problem.action
    return ProbabilisticActor(
        TensorDictModule(net, _LATENT, ["loc", "scale"]),
        ["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": spec.low, "high": spec.high, "tanh_loc": True},
        spec=spec,
    )


def windows(hp: Hyper, batch: TensorDictBase) -> TensorDict:
    """A batch of windows ``[n, length]`` that begin without knowing anything."""
    shape = batch["action"].shape[:-1]
    entries = {k: batch[k] for k in ("action", "next", ("collector", "mask"))}
    for name, size in (("state", hp.state), ("belief", hp.belief)):
        entries[name] = torch.zeros(*shape, size, device=batch["action"].device)
    return TensorDict(entries, shape)


def _model_terms(hp: Hyper) -> Any:
    def terms(loss: Any, batch: TensorDictBase) -> Mapping[str, Tensor]:
        found, _ = loss["model"](windows(hp, batch))
        return _scalars(found)

    return terms


def _behavior_terms(hp: Hyper) -> Any:
    def terms(loss: Any, batch: TensorDictBase) -> Mapping[str, Tensor]:
        encoder, rssm, _ = loss["model"].world_model[0]
        with torch.no_grad():
            data = rssm(encoder(windows(hp, batch)))
        actor, imagined = loss["actor"](starts(hp, data))
        value, _ = loss["value"](imagined)
        reward = loss["actor"].reduce(imagined["next", "reward"], imagined)
        return _scalars({**actor, **value, "reward": reward})

    return terms


def starts(hp: Hyper, watched: TensorDictBase) -> TensorDictBase:
    """Where dreams begin: states ``[n]`` of windows that the world model has watched."""
    start = watched["next"].select(*_LATENT)
    start["collector", "mask"] = watched["collector", "mask"]
    return start[:, (hp.length - 1) % hp.start_every :: hp.start_every].flatten()


def _scalars(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.reshape(()) for k, v in found.items()}


def policy(loss: Any, observed: TensorDict) -> Tensor:
    """Action, state and belief side by side, from an observation and those of the step before."""
    world, actor = loss["model"].world_model, loss["actor"].actor_model
    encoder, rssm, _ = world[0]
    prior, posterior = rssm.rssm_prior.module, rssm.rssm_posterior.module
    sizes = [*prior.action_shape, prior.state_dim, prior.rnn_hidden_dim]
    action, state, belief = observed["carried"].split(sizes, -1)
    nothing = torch.zeros_like(state)  # in place of noise
    *_, belief = prior(state, belief, action, nothing)
    mean, *_ = posterior(belief, encoder.module(observed["observation"]), nothing)
    latent = TensorDict({"state": mean, "belief": belief}, observed.batch_size)
    return torch.cat([deterministic_sample(actor.get_dist(latent)), mean, belief], -1)


def table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    """As the authors store episodes: each observation with the action and the reward that led to
    it, which are 0 where an episode starts."""
    return _arrivals(hp, transitions[~_left_out(hp, transitions)])


def held_out_table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    """The same of the episodes that :func:`table` leaves out."""
    return _arrivals(hp, transitions[_left_out(hp, transitions)])


def _left_out(hp: Hyper, transitions: TensorDict) -> Tensor:
    episode = transitions["episode"]
    return (episode + 1) % (hp.held_out or len(episode) + 1) == 0


def _arrivals(hp: Hyper, transitions: TensorDict) -> TensorDict:
    first = transitions["t"] == 0
    index = torch.arange(len(first)).repeat_interleave(1 + first.long())
    start = torch.cat([torch.ones(1, dtype=torch.bool), index[1:] != index[:-1]]) & first[index]
    kept = start | transitions["valid_next"][index]
    start, data = start[kept], transitions[index[kept]]
    after = data["next", "observation"]
    column = start.reshape(-1, *[1] * (after.ndim - 1))
    reward = data["next", "reward"] * hp.reward_scale + hp.reward_bias
    entries = {
        "action": data["action"].masked_fill(start.unsqueeze(-1), 0.0),
        _SEEN: torch.where(column, data["observation"], after),
        ("next", "reward"): reward.masked_fill(start.unsqueeze(-1), 0.0),
        "episode": data["episode"],
    }
    return TensorDict(entries, [len(data)])


def sampler(
    hp: Hyper, data: TensorDict, device: torch.device, file: Path | None = None
) -> WindowSampler:
    return WindowSampler(data, hp.batch_size, hp.length, device, file)


# rewards down to -16, of random torques about -6
_PENDULUM: Mapping[str, Any] = {"reward_scale": 0.1, "reward_bias": 0.6}

RECIPE = Recipe(
    name="dreamer",
    label="Dreamer",
    paper="Hafner et al. 2020, Dream to Control, arXiv:1912.01603, on stored sequences",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=sampler,
    quick={
        "belief": 64,
        "state": 16,
        "width": 64,
        "batch_size": 16,
        "length": 20,
        "horizon": 12,
        "init_std": 1.0,
        "lr": 1e-3,
        "actor_lr": 3e-4,
        "value_lr": 1e-3,
        "free_nats": 0.0,
        "kl_scale": 0.1,
        "model_steps": 2_500,
        "model_last": 2_500,
        "start_every": 4,
        "tau": 0.02,
    },
    quick_steps=5_000,
    overrides=(("pendulum", _PENDULUM), ("pixelpendulum", _PENDULUM)),
    steps=500_000,
    pictures=True,
)
