"""Losses, batches and slow arithmetic of the on-policy losses; the counterpart of ``discrete``."""

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn

from rlobj import (
    A2CLoss,
    ClipPPOLoss,
    KLPENPPOLoss,
    LossModule,
    PPOLoss,
    ReinforceLoss,
    ValueEstimators,
)
from rlobj.modules import (
    ActorValueOperator,
    IndependentNormal,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
)

OBS, ACT, N = 3, 2, 5
PPOS = (PPOLoss, ClipPPOLoss, KLPENPPOLoss)


class MeanAndScale(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = x.chunk(2, -1)
        return mean, log_scale.exp()


def actor(squashed: bool = False) -> ProbabilisticActor:
    body = nn.Sequential(nn.Linear(OBS, 2 * ACT), MeanAndScale())
    return ProbabilisticActor(
        TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal if squashed else IndependentNormal,
    )


def critic() -> ValueOperator:
    return ValueOperator(nn.Linear(OBS, 1))


def one_step(loss: LossModule) -> LossModule:
    """Advantages of one step each, so that no sample depends on another."""
    loss.default_value_estimator = ValueEstimators.TD0
    return loss


ON_POLICY: dict[str, Callable[..., LossModule]] = {
    "ppo": lambda **kw: one_step(PPOLoss(actor(squashed=True), critic(), **kw)),
    "ppo_delayed": lambda **kw: one_step(
        PPOLoss(actor(), critic(), **{"delay_actor": True, "max_importance_ratio": 2.0, **kw})
    ),
    "clip_ppo": lambda **kw: one_step(
        ClipPPOLoss(actor(), critic(), normalize_advantage=True, clip_value=0.5, **kw)
    ),
    # a beta that stays: a loss that changes with each call fits no comparison of two calls
    "klpen_ppo": lambda **kw: one_step(
        KLPENPPOLoss(actor(), critic(), increment=1.0, decrement=1.0, **kw)
    ),
    "a2c": lambda **kw: one_step(A2CLoss(actor(squashed=True), critic(), **kw)),
    "reinforce": lambda **kw: one_step(ReinforceLoss(actor(), critic(), delay_value=True, **kw)),
}
STOCHASTIC = ("ppo", "a2c")  # their entropy has no closed form


def batch(name: str = "ppo", seed: int = 0, n: int = N) -> TensorDict:
    """Transitions; the second is terminated, the third truncated (done, value still counts)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    flags = torch.zeros(2, n, 1, dtype=torch.bool)
    flags[:, 1:2], flags[0, 2:3] = True, True
    data = {
        "observation": draw(n, OBS),
        "action": draw(n, ACT).tanh(),
        "action_log_prob": 0.3 * draw(n) - 2,
        ("next", "observation"): draw(n, OBS),
        ("next", "reward"): 2 * draw(n, 1),
        ("next", "done"): flags[0],
        ("next", "terminated"): flags[1],
    }
    if name in ("a2c", "reinforce"):
        del data["action_log_prob"]
    old = {"loc": draw(n, ACT), "scale": 0.2 + draw(n, ACT).exp()}
    value = {"state_value": draw(n, 1)}
    extra = {"klpen_ppo": old, "clip_ppo": value}.get(name, {})
    return TensorDict({**data, **extra}, [n])


# a policy and a critic whose outputs are known numbers


class Fixed(nn.Module):
    """One Gaussian whatever the observation; ``mean`` and ``scale`` are its parameters."""

    def __init__(self, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.mean, self.scale = (nn.Parameter(torch.tensor(x)) for x in (mean, scale))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.expand(*x.shape[:-1], 1), self.scale.expand(*x.shape[:-1], 1)


class First(nn.Module):
    """V(s) is the first number of the observation times ``weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x[..., :1]


def known(mean: float = 0.0, scale: float = 1.0) -> tuple[ProbabilisticActor, ValueOperator]:
    """A policy N(mean, scale) and V(s) = s."""
    body = TensorDictModule(Fixed(mean, scale), ["observation"], ["loc", "scale"])
    policy = ProbabilisticActor(body, ["loc", "scale"], distribution_class=IndependentNormal)
    return policy, ValueOperator(First())


def samples(
    actions: Sequence[float],
    ratios: Sequence[float],
    advantages: Sequence[float],
    mean: float = 0.0,
    scale: float = 1.0,
) -> TensorDict:
    """Actions that N(mean, scale) takes so many times as likely as the policy that took them; all
    values are 0."""
    old = [log_normal(a, mean, scale) - math.log(r) for a, r in zip(actions, ratios, strict=True)]
    zeros = torch.zeros(len(old), 1)
    return TensorDict(
        {
            "observation": zeros,
            "action": torch.tensor(actions).unsqueeze(-1),
            "action_log_prob": torch.tensor(old),
            "advantage": torch.tensor(advantages).unsqueeze(-1),
            "value_target": zeros,
        },
        [len(old)],
    )


RATIOS, GAINS = [0.5, 0.9, 1.1, 1.5] * 2, [1.0] * 4 + [-1.0] * 4
REWARDS, VALUES = [1.0, -0.5, 2.0], [0.4, 0.2, -0.3, 0.8]
ACTIONS = [0.3, -0.2, 0.5, 1.0, -0.7, 0.1, 0.8, -1.5]


def weighed(**more: list[float]) -> TensorDict:
    """Eight actions of N(0, 1), with ratios around 1 under advantages of both signs."""
    data = samples(ACTIONS, RATIOS, GAINS)
    for key, values in more.items():
        data[key] = torch.tensor(values).unsqueeze(-1)
    return data


def gradient(value: Tensor, loss: LossModule, name: str) -> Tensor:
    named = dict(loss.named_parameters())
    key = next(k for k in named if k.endswith(name))
    return torch.autograd.grad(value.sum(), named[key], retain_graph=True)[0]


def log_normal(x: float, mean: float, scale: float) -> float:
    return -((x - mean) ** 2) / (2 * scale**2) - math.log(scale * math.sqrt(2 * math.pi))


def rollout(rewards: Sequence[float], values: Sequence[float], end: bool = False) -> TensorDict:
    """Consecutive steps; ``values`` are those of the states, the last one of the state after."""
    n = len(rewards)
    seen = torch.tensor(values).unsqueeze(-1)
    flags = torch.zeros(n, 1, dtype=torch.bool)
    flags[-1] = end
    after = {"observation": seen[1:], "reward": torch.tensor(rewards).unsqueeze(-1)}
    actions, zeros = torch.linspace(-1, 1, n).unsqueeze(-1), torch.zeros(n)
    data = {"observation": seen[:-1], "action": actions, "action_log_prob": zeros}
    after |= {"done": flags, "terminated": flags}
    return TensorDict({**data, "next": TensorDict(after, [n])}, [n])


def gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lmbda: float, end: bool
) -> list[float]:
    """Advantages, from the last step to the first (Schulman et al. 2016, eq. 16)."""
    found, later = [], 0.0
    for t in reversed(range(len(rewards))):
        after = 0.0 if end and t == len(rewards) - 1 else values[t + 1]
        later = rewards[t] + gamma * after - values[t] + gamma * lmbda * later
        found.append(later)
    return found[::-1]


def trunk(
    form: str, outputs: int = 2 * ACT
) -> tuple[TensorDictModule, TensorDictModule, TensorDictModule]:
    """The common trunk, and an actor and a critic that each call it ("twice"), or of which the
    critic reads what the actor's call computed ("once", or "whole": the actor's part before its
    distribution is the whole model, which samples and values, too)."""
    common = TensorDictModule(nn.Linear(OBS, 4), ["observation"], ["hidden"])
    body = nn.Sequential(nn.Linear(4, outputs), MeanAndScale())
    head = ProbabilisticActor(
        TensorDictModule(body, ["hidden"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
    )
    value = ValueOperator(nn.Linear(4, 1), ["hidden"])
    model = ActorValueOperator(common, head, value)
    if form == "twice":
        return common, model.get_policy_operator(), model.get_value_operator()
    parts = [model, head] if form == "whole" else [common, *head.module]
    return common, ProbabilisticTensorDictSequential(*parts), value


# what test_common expects

_PPO = ["loss_objective", "entropy", "loss_entropy", "loss_critic"]
_RATIOS = ["ESS", "kl_approx", "max_ratio", "mean_ratio"]
OUT_KEYS = {
    "ppo": _PPO,
    "ppo_delayed": _PPO,
    "clip_ppo": ["loss_objective", "clip_fraction", *_PPO[1:], "value_clip_fraction", *_RATIOS],
    "klpen_ppo": ["loss_objective", "kl", *_PPO[1:]],
    "a2c": ["loss_objective", "loss_critic", "entropy", "loss_entropy"],
    "reinforce": ["loss_actor", "loss_value"],
}
BESIDES = {name: ("kl_approx", "explained_variance") for name in ON_POLICY if "ppo" in name}
_NEXT = [("next", k) for k in ("observation", "reward", "done", "terminated")]
_SEEN = {"observation", "action", *_NEXT}
IN_KEYS = {
    **{name: {*_SEEN, "action_log_prob"} for name in ("ppo", "ppo_delayed", "clip_ppo")},
    "klpen_ppo": {*_SEEN, "action_log_prob", "loc", "scale"},
    "a2c": _SEEN,
    "reinforce": _SEEN,
}
# the value estimator lets s stand in for an s' that is not there
NOT_NEEDED = {name: {("next", "observation")} for name in ON_POLICY}
_ACTOR = {"actor_network_params.module.0.module.0": (2 * ACT, OBS)}
_CRITIC = {"critic_network_params.module": (1, OBS)}
_DELAYED = [{f"target_{k}": v for k, v in layer.items()} for layer in (_ACTOR, _CRITIC)]
LAYERS = {
    **{name: {**_ACTOR, **_CRITIC} for name in ON_POLICY},
    "ppo_delayed": {**_ACTOR, **_CRITIC, **_DELAYED[0]},
    "reinforce": {**_ACTOR, **_CRITIC, **_DELAYED[1]},
}
_COEFFS: dict[str, tuple] = {"entropy_coeff": (), "critic_coeff": ()}
OTHERS = {
    "ppo": _COEFFS,
    "ppo_delayed": {**_COEFFS, "max_importance_ratio": ()},
    "clip_ppo": {**_COEFFS, "clip_epsilon": (), "clip_value": ()},
    "klpen_ppo": {**_COEFFS, "beta": ()},
    "a2c": _COEFFS,
}
