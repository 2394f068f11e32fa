"""The three Dreamer losses, their networks and their environment against torchrl's."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, Unbounded
from torchrl.envs.model_based.dreamer import DreamerEnv

import rlobj.envs
from tests.parity.harness import (
    Config,
    compare,
    pair,
    seeded,
)

pytestmark = pytest.mark.parity
ACT, STATE, BELIEF, SIDE, EMBEDDED = 2, 3, 4, 13, 4
READ, AFTER = ["state", "belief"], [("next", "state"), ("next", "belief")]


class Head(nn.Module):
    """A number per state and belief."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(STATE + BELIEF, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, state, belief):
        return self.net(torch.cat([state, belief], -1))


def box(lib):
    return lib.specs.Bounded(-torch.ones(ACT), torch.ones(ACT))


def prior(lib, **kwargs):
    sizes = {"hidden_dim": BELIEF, "rnn_hidden_dim": BELIEF, "state_dim": STATE}
    return lib.modules.RSSMPrior(box(lib), **{**sizes, "action_dim": ACT, **kwargs})


def posterior(lib, **kwargs):
    return lib.modules.RSSMPosterior(**{"hidden_dim": 5, "state_dim": STATE, **kwargs})


def rollout(lib, **kwargs):
    written = ["prior_mean", "prior_std", "_", "belief"]
    before = TensorDictModule(
        prior(lib),
        [*READ, "action"],
        [k if k == "_" else ("next", k) for k in written],
    )
    after = TensorDictModule(
        posterior(lib, rnn_hidden_dim=BELIEF, obs_embed_dim=EMBEDDED),
        [("next", "belief"), ("next", "encoded_latents")],
        [("next", k) for k in ("posterior_mean", "posterior_std", "state")],
    )
    return lib.modules.RSSMRollout(before, after, **kwargs)


def world_model(lib, reward="reward", pixels="pixels", reco="reco_pixels"):
    encoder = TensorDictModule(
        lib.modules.ObsEncoder(2, 2), [("next", pixels)], [("next", "encoded_latents")]
    )
    decoder = TensorDictModule(lib.modules.ObsDecoder(2, 2), AFTER, [("next", reco)])
    parts = TensorDictSequential(encoder, rollout(lib), decoder)
    net = lib.modules.WorldModelWrapper(parts, TensorDictModule(Head(), AFTER, [("next", reward)]))
    net(windows(pixels=pixels)())  # sizes that depend on the input
    return net


def windows(*shape, reward="reward", pixels="pixels"):
    def make():
        size = shape or (2, 3)
        generator = torch.Generator().manual_seed(4)

        def draw(*entry):
            return torch.randn(*size, *entry, generator=generator)

        data = {"state": draw(STATE), "belief": draw(BELIEF), "action": draw(ACT).tanh()}
        data[("next", pixels)], data[("next", reward)] = draw(3, SIDE, SIDE), 2 * draw(1)
        return TensorDict(data, list(size))

    return make


def with_data(cls):
    """The loss with what it returns besides in one TensorDict, as the comparison wants it."""

    class Loss(cls):
        def forward(self, tensordict):
            losses, data = super().forward(tensordict)
            return TensorDict({**losses, "data": data})

    return Loss


def model_loss(names=None, keys=None, **kwargs):
    def build(lib):
        cls = with_data(lib.losses.DreamerModelLoss)
        loss = cls(world_model(lib, **(names or {})), **kwargs)
        loss.set_keys(**(keys or {}))
        return loss

    return build


OTHER = {"reward": "pay", "pixels": "image"}
MODEL = {
    "default": {},
    "weights": {"lambda_kl": 0.3, "lambda_reco": 2.0, "lambda_reward": 5.0},
    "no weight": {"lambda_kl": 0.0},
    "reco l1": {"reco_loss": "l1"},
    "reco smooth l1": {"reco_loss": "smooth_l1"},
    "reward l1": {"reward_loss": "l1"},
    "both smooth l1": {"reco_loss": "smooth_l1", "reward_loss": "smooth_l1"},
    "no free nats": {"free_nats": 0},
    "a fraction of a nat": {"free_nats": 0.5},
    "more free nats than there are": {"free_nats": 100},
    "delayed clamp": {"delayed_clamp": True, "free_nats": 1},
    "delayed clamp above": {"delayed_clamp": True, "free_nats": 100},
    "global average": {"global_average": True, "free_nats": 0},
    "global average, free nats": {"global_average": True, "free_nats": 0.1},
    "global average, delayed clamp": {
        "global_average": True, "delayed_clamp": True, "free_nats": 0.01,
        "reco_loss": "l1", "reward_loss": "l1",
    },
    "renamed": {"names": {**OTHER, "reco": "drawn"}, "keys": {**OTHER, "reco_pixels": "drawn"}},
    "renamed true reward": {"keys": {"true_reward": "given"}},
}  # fmt: skip
MODEL_CONFIGS = [
    *(Config(k, model_loss(**v), windows(**(OTHER if k == "renamed" else {})))
      for k, v in MODEL.items()),
    Config("one step", model_loss(free_nats=0.1), windows(3, 1)),
    Config("one window without a batch axis", model_loss(free_nats=0.1), windows(5)),
    Config("torchrl's modules", model_loss(free_nats=0.1), windows(), own_modules=False),
    Config(
        "torchrl's modules, averaged", model_loss(global_average=True), windows(), own_modules=False
    ),
]  # fmt: skip


# torchrl's own choice of the time axis leaves one-step returns, see below
TIME = {"time_dim": -2}
LAMBDA = ("tdlambda", TIME)


def imagined_world(lib, belief="belief", reward="reward"):
    dynamics = TensorDictModule(
        prior(lib), ["state", belief, "action"], ["_", "_", "state", belief]
    )
    head = TensorDictModule(Head(), ["state", belief], [reward])
    model = lib.modules.WorldModelWrapper(TensorDictSequential(dynamics), head)
    if lib.name == "rlobj" and lib.modules is rlobj.modules:
        return rlobj.envs.DreamerEnv(model, (STATE,), (BELIEF,))
    env = DreamerEnv(model, (STATE,), (BELIEF,))
    sizes = {"state": Unbounded(STATE), belief: Unbounded(BELIEF)}
    env.observation_spec, env.state_spec = Composite(sizes), Composite(sizes)
    env.action_spec, env.reward_spec = (
        Composite(action=Unbounded(ACT)),
        Composite({reward: Unbounded(1)}),
    )
    return env


def policy(lib, belief="belief", kind="TanhNormal", log_prob=False, **kwargs):
    body = lib.modules.DreamerActor(ACT, depth=1, num_cells=6, **kwargs)
    body(torch.zeros(1, STATE), torch.zeros(1, BELIEF))
    return lib.modules.ProbabilisticActor(
        TensorDictModule(body, ["state", belief], ["loc", "scale"]),
        ["loc", "scale"],
        spec=lib.specs.Composite(action=box(lib)),
        distribution_class=getattr(lib.modules, kind),
        distribution_kwargs={"tanh_loc": True} if kind == "TanhNormal" else {},
        return_log_prob=log_prob,
    )


def actor_loss(estimator=LAMBDA, value="state_value", belief="belief", actor=None, **kwargs):
    def build(lib):
        cls = with_data(lib.losses.DreamerActorLoss)
        net = TensorDictModule(Head(), ["state", belief], [value])
        actor_net = policy(lib, belief, **(actor or {}))
        loss = cls(actor_net, net, imagined_world(lib, belief), **kwargs)
        loss.set_keys(value=value, belief=belief)
        kind, settings = estimator
        kind = getattr(lib.value, kind) if kind.endswith("Estimator") else kind
        loss.make_value_estimator(kind, **settings)
        return loss

    return build


def starts(*shape, belief="belief"):
    def make():
        generator = torch.Generator().manual_seed(6)
        data = {k: torch.randn(*shape, n, generator=generator) for k, n in
                (("state", STATE), (belief, BELIEF), ("other", 2))}  # fmt: skip
        return TensorDict(data, list(shape))

    return make


SETTINGS = {"lmbda": 0.5, "value_network": None, "differentiable": True, **TIME}
ACTOR = {
    "default": {},
    "short": {"imagination_horizon": 2},
    "one step": {"imagination_horizon": 1},
    "long": {"imagination_horizon": 25},
    "not discounted": {"discount_loss": False},
    "gamma, lambda": {"estimator": ("tdlambda", {"gamma": 0.7, "lmbda": 0.3, **TIME})},
    "lambda 1": {"estimator": ("tdlambda", {"lmbda": 1.0, **TIME})},
    "not discounted, gamma": {
        "discount_loss": False,
        "estimator": ("tdlambda", {"gamma": 0.5, "lmbda": 0.9, **TIME}),
    },
    "loop": {"estimator": ("tdlambda", {"vectorized": False, "gamma": 0.9, **TIME})},
    "standardised rewards": {"estimator": ("tdlambda", {"average_rewards": True, **TIME})},
    "td0": {"estimator": ("td0", {"gamma": 0.8})},
    "td0, not discounted": {"discount_loss": False, "estimator": ("td0", {})},
    "td1": {"estimator": ("td1", {"gamma": 0.95, **TIME})},
    "td1, gamma 1": {"estimator": ("td1", {"gamma": 1.0, **TIME})},
    "by class": {"estimator": ("TDLambdaEstimator", {"gamma": 0.9, **SETTINGS})},
    "renamed": {"value": "v", "belief": "h"},
    "Gaussian policy": {"actor": {"kind": "IndependentNormal"}},
    "policy's scale": {"actor": {"std_bias": 0.7, "std_min_val": 0.3}},
    "log-probabilities": {"actor": {"log_prob": True, "std_bias": 0.7}, "imagination_horizon": 4},
}
ACTOR_CONFIGS = [
    *(Config(k, actor_loss(**v), starts(4, belief=v.get("belief", "belief")))
      for k, v in ACTOR.items()),
    Config("one start", actor_loss(), starts(1)),
    Config("a single start", actor_loss(imagination_horizon=5), starts()),
    Config("torchrl's modules", actor_loss(), starts(4), own_modules=False),
    Config("torchrl's modules, td0", actor_loss(("td0", {})), starts(3), own_modules=False),
]  # fmt: skip


def value_loss(value="state_value", **kwargs):
    def build(lib):
        net = TensorDictModule(Head(), READ, [value])
        loss = with_data(lib.losses.DreamerValueLoss)(net, **kwargs)
        loss.set_keys(value=value)
        return loss

    return build


def trajectories(*shape):
    def make():
        data = starts(*shape)()
        data["lambda_target"] = 2 * torch.randn(*shape, 1, generator=torch.manual_seed(3))
        data["next", "state"] = data["state"] + 1
        return data

    return make


PENALTIES = [
    {"value_loss": kind, **more}
    for kind in (None, "l1", "smooth_l1", "l2")
    for more in ({}, {"discount_loss": False}, {"gamma": 0.6}, {"gamma": 1.0}, {"gamma": 0.0})
]
VALUE_CONFIGS = [
    *(Config(str(k), value_loss(**k), trajectories(4, 5)) for k in PENALTIES),
    Config("renamed", value_loss("v"), trajectories(4, 5)),
    Config("one step", value_loss(), trajectories(4, 1)),
    Config("a single trajectory", value_loss(), trajectories(5)),
    Config("two batch axes", value_loss(), trajectories(2, 3, 5)),
]


@pytest.mark.parametrize("config", MODEL_CONFIGS, ids=lambda c: c.name)
def test_model(config):
    compare(config)


@pytest.mark.parametrize("config", ACTOR_CONFIGS, ids=lambda c: c.name)
def test_actor(config):
    compare(config)


@pytest.mark.parametrize("config", VALUE_CONFIGS, ids=lambda c: c.name)
def test_value(config):
    compare(config)


# what torchrl gets wrong


def test_returns_of_torchrl_look_one_step_ahead():
    """Its batch of no axes makes the time axis the last one of the rewards, of size 1."""
    reward, value = torch.tensor([[1.0], [10.0], [100.0]]), torch.tensor([[0.0], [0.0], [1000.0]])
    settings = {"gamma": 0.5, "lmbda": 1.0}
    theirs, ours = pair(Config("", actor_loss(("tdlambda", settings)), starts(2)))
    assert theirs.lambda_target(reward, value).flatten().tolist() == [1.0, 10.0, 600.0]
    assert ours.lambda_target(reward, value).flatten().tolist() == [156.0, 310.0, 600.0]


def test_batches_of_several_axes_and_renamed_rewards():
    """torchrl's recurrence takes one batch axis; renamed, the reward is not found."""
    theirs, ours = pair(Config("", actor_loss(), starts(2)))
    with pytest.raises(ValueError, match="GRUCell"):
        theirs(starts(2, 3)())
    found = seeded(ours, starts(2, 3)())
    flat = seeded(ours, starts(2, 3)().flatten())
    assert found["data"].shape == (2, 3, 15)
    torch.testing.assert_close(found["loss_actor"], flat["loss_actor"])
    theirs.set_keys(reward="pay")
    with pytest.raises(AttributeError):
        theirs.lambda_target(torch.ones(2, 3, 1), torch.ones(2, 3, 1))
