"""A small world, its losses, batches and slow arithmetic; the counterpart of ``discrete``."""

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from rlobj import DreamerActorLoss, DreamerModelLoss, DreamerValueLoss, LossModule
from rlobj.envs import DreamerEnv
from rlobj.modules import (
    ProbabilisticActor,
    RSSMPosterior,
    RSSMPrior,
    RSSMRollout,
    TanhNormal,
    WorldModelWrapper,
)
from rlobj.specs import Bounded

STATE, BELIEF, ACT, SEEN, N, STEPS, HORIZON = 2, 3, 2, 2, 2, 3, 4
IMAGE = (1, 2, 2)
READ, AFTER = ["state", "belief"], [("next", "state"), ("next", "belief")]


class Head(nn.Module):
    """A linear function of state and belief."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.lin = nn.Linear(STATE + BELIEF, torch.Size(shape).numel())

    def forward(self, state: Tensor, belief: Tensor) -> Tensor:
        return self.lin(torch.cat([state, belief], -1)).unflatten(-1, self.shape)


class Gaussian(Head):
    def forward(self, state: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = super().forward(state, belief).chunk(2, -1)
        return loc, log_scale.exp()


def spec() -> Bounded:
    return Bounded(-torch.ones(ACT), torch.ones(ACT))


def prior() -> RSSMPrior:
    return RSSMPrior(spec(), 4, BELIEF, STATE, action_dim=ACT)


def world_model() -> WorldModelWrapper:
    eye = nn.Sequential(nn.Flatten(-3), nn.Linear(4, SEEN))
    before = [*(("next", k) for k in ("prior_mean", "prior_std")), "_", ("next", "belief")]
    after = [("next", k) for k in ("posterior_mean", "posterior_std", "state")]
    posterior = RSSMPosterior(4, STATE, rnn_hidden_dim=BELIEF, obs_embed_dim=SEEN)
    parts = TensorDictSequential(
        TensorDictModule(eye, [("next", "pixels")], [("next", "seen")]),
        RSSMRollout(
            TensorDictModule(prior(), [*READ, "action"], before),
            TensorDictModule(posterior, [("next", "belief"), ("next", "seen")], after),
        ),
        TensorDictModule(Head(*IMAGE), AFTER, [("next", "reco_pixels")]),
    )
    return WorldModelWrapper(parts, TensorDictModule(Head(1), AFTER, [("next", "reward")]))


def environment(**kwargs: object) -> DreamerEnv:
    dynamics = TensorDictModule(prior(), [*READ, "action"], ["_", "_", *READ])
    model = WorldModelWrapper(
        TensorDictSequential(dynamics), TensorDictModule(Head(1), READ, ["reward"])
    )
    return DreamerEnv(model, (STATE,), (BELIEF,), **kwargs)


def policy() -> ProbabilisticActor:
    return ProbabilisticActor(
        TensorDictModule(Gaussian(2 * ACT), READ, ["loc", "scale"]),
        ["loc", "scale"],
        spec=spec(),
        distribution_class=TanhNormal,
    )


def value(out: str = "state_value") -> TensorDictModule:
    return TensorDictModule(Head(1), READ, [out])


def actor(**kwargs: object) -> LossModule:
    return DreamerActorLoss(
        policy(), value(), environment(), **{"imagination_horizon": HORIZON, **kwargs}
    )


DREAMS: dict[str, Callable[..., LossModule]] = {
    "dreamer_model": lambda **kw: DreamerModelLoss(world_model(), **{"free_nats": 0.5, **kw}),
    "dreamer_actor": actor,
    "dreamer_value": lambda **kw: DreamerValueLoss(value(), **kw),
}
NETWORKS = ("world_model", "actor_model", "model_based_env", "value_model")


def terms(out: object) -> TensorDict:
    """The losses, of a pair or alone."""
    return out[0] if isinstance(out, tuple) else out


def batch(name: str, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    shape = {"dreamer_model": (N, STEPS), "dreamer_actor": (5,), "dreamer_value": (N, HORIZON)}[
        name
    ]

    def draw(*entry: int) -> Tensor:
        return torch.randn(*shape, *entry, generator=generator)

    data = {"state": draw(STATE), "belief": draw(BELIEF).tanh()}
    if name == "dreamer_model":
        data["action"] = draw(ACT).tanh()
        data["next", "pixels"], data["next", "reward"] = draw(*IMAGE), draw(1)
    if name == "dreamer_value":
        data["lambda_target"] = 2 * draw(1)
    return TensorDict(data, shape)


_ROLLOUT, _ENV = "world_model.module.0.module.1", "model_based_env.world_model.module"
_POSTERIOR = f"{_ROLLOUT}.rssm_posterior.module.obs_rnn_to_post_projector"
_PRIOR, _DREAMED = f"{_ROLLOUT}.rssm_prior.module", f"{_ENV}.0.module.0.module"

# arithmetic on plain numbers, one state at a time


class Slow:
    """The networks of a loss as functions of lists, from the values of its tensors."""

    def __init__(self, loss: LossModule) -> None:
        self.held = {k: v.tolist() for k, v in loss.tensors().items()}

    def affine(self, name: str, *inputs: Sequence[float], of: str = "") -> list[float]:
        x = [v for part in inputs for v in part]
        weight, bias = self.held[f"{name}.weight{of}"], self.held[f"{name}.bias{of}"]
        return [
            b + sum(w * v for w, v in zip(row, x, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]

    def recur(self, name: str, x: list[float], h: list[float]) -> list[float]:
        """Cho et al. 2014, eq. 5 to 8, with torch's two biases."""
        new, old, n = self.affine(name, x, of="_ih"), self.affine(name, h, of="_hh"), len(h)
        out = []
        for i in range(n):
            reset, update = (1 / (1 + math.exp(-new[j] - old[j])) for j in (i, n + i))
            candidate = math.tanh(new[2 * n + i] + reset * old[2 * n + i])
            out.append((1 - update) * candidate + update * h[i])
        return out

    def gaussian(self, name: str, *inputs: list[float]) -> tuple[list[float], list[float]]:
        raw = self.affine(f"{name}.2", elu(self.affine(f"{name}.0", *inputs)))
        return raw[:STATE], [max(math.log(1 + math.exp(x)), 0.1) for x in raw[STATE:]]

    def prior(
        self, name: str, s: list[float], h: list[float], a: list[float]
    ) -> tuple[list[float], tuple[list[float], list[float]]]:
        """The next belief, and mean and scale of the next state."""
        x = elu(self.affine(f"{name}.action_state_projector.0", s, a))
        h = self.recur(f"{name}.rnn", x, h)
        return h, self.gaussian(f"{name}.rnn_to_prior_projector", h)


def elu(x: Sequence[float]) -> list[float]:
    return [v if v > 0 else math.exp(v) - 1 for v in x]


def drawn(moments: tuple[list[float], list[float]], eps: Sequence[float]) -> list[float]:
    return [m + s * e for m, s, e in zip(*moments, eps, strict=True)]


def lambda_returns(
    rewards: list[float], values: list[float], gamma: float, lmbda: float
) -> list[float]:
    """Dreamer's eq. 4 to 6 as sums; ``values`` are those of the next states."""
    returns, horizon = [], len(rewards)
    for t in range(horizon):
        steps = [
            sum(gamma**n * rewards[t + n] for n in range(k)) + gamma**k * values[t + k - 1]
            for k in range(1, horizon - t + 1)
        ]
        mixed = sum((1 - lmbda) * lmbda**n * v for n, v in enumerate(steps[:-1]))
        returns.append(mixed + lmbda ** (len(steps) - 1) * steps[-1])
    return returns


def kl(prior: tuple[list, list], posterior: tuple[list, list]) -> list[float]:
    """Divergence of the second from the first, per entry."""
    found = []
    for m, s, n, t in zip(*prior, *posterior, strict=True):
        found.append(math.log(s / t) + (t * t + (m - n) ** 2) / (2 * s * s) - 0.5)
    return found


def slow_steps(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> list[dict]:
    """What the world model says of each step, in the order of the batch."""
    slow, noise, found = Slow(loss), [t.tolist() for t in tape], []
    for i, window in enumerate(data):
        s, h = window[0]["state"].tolist(), window[0]["belief"].tolist()
        for t, step in enumerate(window):
            pixels = step["next", "pixels"].flatten().tolist()
            start = (s, h)
            h, prior = slow.prior(_PRIOR, s, h, step["action"].tolist())
            seen = slow.affine("world_model.module.0.module.0.module.1", pixels)
            posterior = slow.gaussian(_POSTERIOR, h, seen)
            s = drawn(posterior, noise[2 * t + 1][i])
            reco = slow.affine("world_model.module.0.module.2.module.lin", s, h)
            (reward,) = slow.affine("world_model.module.1.module.lin", s, h)
            said = {
                "prior": prior,
                "posterior": posterior,
                "reco": list(zip(pixels, reco, strict=True)),
            }
            said |= {"reward": (step["next", "reward"].item(), reward), "start": start}
            found.append({**said, "state": s, "belief": h})
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def squash(x: float) -> float:
    return min(max(math.tanh(x), 1e-6 - 1), 1 - 1e-6)  # ``safe_tanh``


def imagined(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> list[dict[str, list]]:
    """One trajectory per start: rewards, values of next states, states and beliefs."""
    slow, noise, found = Slow(loss), [t.tolist() for t in tape], []
    for i, start in enumerate(data):
        s, h = start["state"].tolist(), start["belief"].tolist()
        path: dict[str, list] = {k: [] for k in ("reward", "value", "state", "belief", "action")}
        for t in range(loss.imagination_horizon):
            raw = slow.affine("actor_model.module.0.module.lin", s, h)
            moments = raw[:2], [math.exp(x) for x in raw[2:]]
            action = [squash(x) for x in drawn(moments, noise[2 * t][i])]
            for key, entry in (("state", s), ("belief", h), ("action", action)):
                path[key].append(entry)
            h, prior = slow.prior(_DREAMED, s, h, action)
            s = drawn(prior, noise[2 * t + 1][i])
            path["reward"] += slow.affine(f"{_ENV}.1.module.lin", s, h)
            path["value"] += slow.affine("value_model.module.lin", s, h)
        found.append(path)
    return found


# what test_common expects

IN_KEYS = {
    "dreamer_model": {*READ, "action", ("next", "pixels"), ("next", "reward")},
    "dreamer_actor": {*READ},
    "dreamer_value": {*READ, "lambda_target"},
}
OUT_KEYS = {
    "dreamer_model": ["loss_model_kl", "loss_model_reco", "loss_model_reward"],
    "dreamer_actor": ["loss_actor"],
    "dreamer_value": ["loss_value"],
}


def _of_prior(name: str) -> tuple[dict[str, tuple], dict[str, tuple]]:
    layers = {
        f"{name}.action_state_projector.0": (4, STATE + ACT),
        f"{name}.rnn_to_prior_projector.0": (4, BELIEF),
        f"{name}.rnn_to_prior_projector.2": (2 * STATE, 4),
    }
    gates = {"weight_ih": (9, 4), "weight_hh": (9, BELIEF), "bias_ih": (9,), "bias_hh": (9,)}
    return layers, {f"{name}.rnn.{k}": v for k, v in gates.items()}


_LAYERS, _GATES = _of_prior(_PRIOR)
_IMAGINED, _IMAGINED_GATES = _of_prior(_DREAMED)
LAYERS = {
    "dreamer_model": {
        **_LAYERS,
        "world_model.module.0.module.0.module.1": (SEEN, 4),
        f"{_POSTERIOR}.0": (4, BELIEF + SEEN),
        f"{_POSTERIOR}.2": (2 * STATE, 4),
        "world_model.module.0.module.2.module.lin": (4, STATE + BELIEF),
        "world_model.module.1.module.lin": (1, STATE + BELIEF),
    },
    "dreamer_actor": {
        **_IMAGINED,
        f"{_ENV}.1.module.lin": (1, STATE + BELIEF),
        "actor_model.module.0.module.lin": (2 * ACT, STATE + BELIEF),
    },
    "dreamer_value": {"value_model.module.lin": (1, STATE + BELIEF)},
}
OTHERS = {"dreamer_model": _GATES, "dreamer_actor": _IMAGINED_GATES}
# the actor's loss computes with what others save and train
ELSEWHERE = {"dreamer_actor": ("value_model.module.lin.weight", "value_model.module.lin.bias")}
HELD = {
    *(
        f"{k}.{leaf}"
        for k in LAYERS["dreamer_actor"]
        if k.startswith(_ENV)
        for leaf in ("weight", "bias")
    ),
    *_IMAGINED_GATES,
}
