"""Actors, batches and options of the on-policy losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn

from tests.parity import continuous as nets
from tests.parity.continuous import ACT, LEFT_BEHIND, OBS, TIME, WIDTH
from tests.parity.harness import Config, Library

MOVE, TURN = "move", ("arm", "turn")  # the parts of a composite action
KEYS = {
    "advantage": "gain",
    "value_target": "goal",
    "value": "worth",
    "reward": "pay",
    "done": "stop",
    "terminated": ("flags", "over"),
}
RENAME = {
    "advantage": "gain",
    "value_target": "goal",
    "state_value": "worth",
    ("next", "reward"): ("next", "pay"),
    ("next", "done"): ("next", "stop"),
    ("next", "terminated"): ("next", "flags", "over"),
}


class Parts(nn.Module):
    """Parameters of two distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(OBS, 2 * ACT + 2 * ACT)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, scale, turn, width = self.layer(x).split([ACT, ACT, ACT, ACT], -1)
        return loc, (0.5 * scale).exp(), turn, (0.5 * width).exp()


def composite(lib: Library, discrete: bool = True, kind: str = "IndependentNormal") -> Any:
    """Two parts: a Gaussian, and one of several turns or another Gaussian."""
    first, second = (("params", name) for name in ("move", "turn"))
    family = getattr(lib.modules, kind, torch.distributions.Normal)
    if discrete:
        outs = [(*first, "loc"), (*first, "scale"), (*second, "logits"), "unused"]
    else:
        outs = [(*p, k) for p in (first, second) for k in ("loc", "scale")]
    body = TensorDictModule(Parts(), ["observation"], outs)
    return ProbabilisticTensorDictSequential(
        body,
        ProbabilisticTensorDictModule(
            in_keys=["params"],
            out_keys=[MOVE, TURN],
            distribution_class=CompositeDistribution,
            distribution_kwargs={
                "distribution_map": {
                    "move": family,
                    "turn": torch.distributions.Categorical if discrete else family,
                },
                "name_map": {"move": MOVE, "turn": TURN},
            },
        ),
    )


def categorical(lib: Library) -> Any:
    return lib.modules.ProbabilisticActor(
        TensorDictModule(nn.Linear(OBS, 3), ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=lib.modules.OneHotCategorical,
    )


def each_entry(lib: Library) -> Any:
    """A Gaussian per entry of the action: a log-probability for each."""
    body = nn.Sequential(nn.Linear(OBS, 2 * ACT), nets.MeanAndScale())
    return lib.modules.ProbabilisticActor(
        TensorDictModule(body, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=torch.distributions.Normal,
    )


def networks(lib: Library, policy: str, trunk: str, value: str) -> tuple[Any, Any]:
    """Actor and critic: ``trunk`` is "own", "shared" (each calls it), or "once"."""
    if trunk == "own":
        kinds = {
            "tanh": partial(nets.stochastic, lib),
            "gaussian": partial(nets.stochastic, lib, tanh=False),
            "categorical": partial(categorical, lib),
            "composite": partial(composite, lib),
            "composite gaussian": partial(composite, lib, discrete=False),
            "composite tanh": partial(composite, lib, False, "TanhNormal"),
            "composite entries": partial(composite, lib, False, "Normal"),
            "each entry": partial(each_entry, lib),
        }
        return kinds[policy](), nets.value(lib, out=value)
    common = nets.trunk()
    body = nn.Sequential(nn.Linear(WIDTH, 2 * ACT), nets.MeanAndScale())
    head = lib.modules.ProbabilisticActor(
        TensorDictModule(body, ["hidden"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=lib.modules.IndependentNormal,
    )
    critic = lib.modules.ValueOperator(nn.Linear(WIDTH, 1), ["hidden"], [value])
    model = lib.modules.ActorValueOperator(common, head, critic)
    if trunk == "once":
        return ProbabilisticTensorDictSequential(common, *head.module), critic
    return model.get_policy_operator(), model.get_value_operator()


def build(
    lib: Library,
    *,
    loss: str,
    policy: str = "tanh",
    trunk: str = "own",
    keys: dict[str, NestedKey] | None = None,
    estimator: tuple[str, dict] | None = None,
    critic: bool = True,
    norm: bool = False,
    **kwargs: Any,
) -> Any:
    keys = keys or {}
    actor, value = networks(lib, policy, trunk, keys.get("value", "state_value"))
    if norm:  # torchrl's, for both: a loss takes what has its two methods
        from torchrl.modules import PopArtValueNorm

        kwargs["advantage_norm"] = PopArtValueNorm(shape=1, beta=0.9)
    made = getattr(lib.losses, loss)(actor, value if critic else None, **kwargs)
    made.set_keys(**keys)
    nets.estimate(lib, made, estimator)
    return made


def record(data: TensorDict, policy: str, turn: Tensor, draw: Callable[..., Tensor]) -> None:
    """Actions, log-probabilities and parameters of the acting policy."""
    shape = data.batch_size
    if policy == "categorical":
        data["action"], data["logits"] = nn.functional.one_hot(turn, 3), draw(3)
    elif policy.startswith("composite"):
        gaussian = {"loc": 0.3 * draw(ACT), "scale": 0.5 * draw(ACT).abs() + 0.5}
        data[MOVE], data[(*TURN[:-1], "turn_log_prob")] = data.pop("action"), -1 + 0.5 * draw()
        data["move_log_prob"] = data.pop("action_log_prob")
        data[TURN] = turn if policy == "composite" else draw(ACT).tanh()
        logits = {"logits": draw(ACT)}
        data["params", "move"] = TensorDict(gaussian, list(shape))
        other = logits if policy == "composite" else {k: v.flip(-1) for k, v in gaussian.items()}
        data["params", "turn"] = TensorDict(other, list(shape))
    else:
        data["loc"], data["scale"] = 0.3 * draw(ACT), 0.5 * draw(ACT).abs() + 0.5
    if policy == "each entry":
        data["action_log_prob"] = -1 + 0.5 * draw(ACT)
    if policy == "composite entries":
        for key in ("move_log_prob", (*TURN[:-1], "turn_log_prob")):
            data[key] = -1 + 0.5 * draw(ACT)


def teamed(data: TensorDict) -> TensorDict:
    """The last axis as one of agents, who share rewards and flags."""
    shape, shared = data.batch_size[:-1], ("reward", "done", "terminated")
    team = TensorDict(dict(data.exclude("next").items()), shape, names=TIME)
    after = TensorDict({"observation": data["next", "observation"]}, shape)
    for key in shared:
        after[key] = data["next", key].select(len(shape), 0)
    return team.set("next", after)


def batch(
    *shape: int,
    policy: str = "tanh",
    given: Sequence[str] = (),
    hidden: bool = False,
    valid: str = "",
    team: bool = False,
    **kwargs: Any,
) -> TensorDict:
    """Transitions with what the acting policy recorded; ``given`` are entries with a trailing axis
    of one, ``valid`` names a mask."""
    rename = kwargs.pop("rename", {})
    data = nets.batch(*shape, **kwargs)
    generator = torch.Generator().manual_seed(11)

    def draw(*size: int) -> Tensor:
        return torch.randn(*shape, *size, generator=generator)

    turn = torch.randint(ACT, shape, generator=generator)
    data["action_log_prob"] = -2 + 0.5 * draw()
    record(data, policy, turn, draw)
    for key in given:
        data[key] = draw(1)
    if hidden:
        data["hidden"], data["next", "hidden"] = draw(WIDTH), draw(WIDTH)
    if valid:
        data[valid] = torch.rand(*shape, 1, generator=generator) < 0.7
    data = teamed(data) if team else data
    for old, new in rename.items():
        if old in data.keys(True):
            data.rename_key_(old, new)
    return data


GIVEN = ("advantage", "value_target", "state_value")


def config(
    name: str,
    updater: Any = None,
    shape: Sequence[int] = (3, 4),
    own_modules: bool = True,
    data: dict | None = None,
    skip: tuple = (),
    weights: dict | None = None,
    **kwargs: Any,
) -> Config:
    data = {"names": TIME if len(shape) == 2 else None, **(data or {})}
    make = partial(batch, *shape, policy=kwargs.get("policy", "tanh"), **data)
    hidden = (*LEFT_BEHIND, *skip)
    return Config(name, partial(build, **kwargs), make, updater, own_modules, hidden, weights or {})


FIXED = {"data": {"given": GIVEN}}
COMMON: dict[str, dict] = {  # of every on-policy loss
    "default": {},
    "[B]": {"shape": (8,)},
    "[B, T, N]": {"shape": (2, 3, 2)},
    "advantage in the batch": FIXED,
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "critic by l1": {"loss_critic_type": "l1"},
    "critic by l2": {"loss_critic_type": "l2"},
    "clipped value": {"clip_value": 0.3, **FIXED},
    "clipped value, computed": {"clip_value": 0.3},
    "gaussian": {"policy": "gaussian"},
    "categorical": {"policy": "categorical"},
    "shared trunk": {"trunk": "shared"},
    "shared trunk, separate losses": {"trunk": "shared", "separate_losses": True},
    "own parameters": {"functional": False},
    "own parameters, trunk, separate": {
        "functional": False,
        "trunk": "shared",
        "separate_losses": True,
    },
    "TD(0)": {"estimator": ("TD0", {"gamma": 0.9})},
    "TD(1)": {"estimator": ("TD1", {"gamma": 0.9})},
    "TD(lambda)": {"estimator": ("TDLambda", {"gamma": 0.9, "lmbda": 0.5})},
    "GAE": {"estimator": ("GAE", {"gamma": 0.8, "lmbda": 0.7, "average_gae": True})},
    "agents": {
        "shape": (3, 4, 2),
        "policy": "gaussian",
        "data": {"team": True},
        "estimator": ("MAGAE", {"gamma": 0.9, "lmbda": 0.8}),
    },
    "mask": {"data": {"mask": True}},
    "validity": {"data": {"valid": "shifted_valid", "given": GIVEN}, "reduction": "sum"},
    "masked, none": {"data": {"mask": True}, "reduction": "none"},
    "n steps": {"data": {"steps": 3}},
    "renamed": {"keys": KEYS, "data": {"rename": RENAME}},
    "renamed, clipped": {
        "keys": KEYS,
        "data": {"rename": RENAME, "given": GIVEN},
        "clip_value": 0.2,
    },
    "torchrl's modules": {"own_modules": False},
    "torchrl's modules, trunk": {"own_modules": False, "trunk": "shared"},
    "torchrl's gaussian": {"own_modules": False, "policy": "gaussian"},
}
ENTROPY: dict[str, dict] = {  # of PPO and A2C
    "no entropy": {"entropy_bonus": False},
    "entropy weighs 0.3": {"entropy_coeff": 0.3},
    "entropy weighs nothing": {"entropy_coeff": 0.0},
    "three samples": {"samples_mc_entropy": 3},
    "critic weighs 0.4": {"critic_coeff": 0.4},
    "scaled by a norm": {"norm": True},
    "scaled by a norm, masked": {"norm": True, "data": {"mask": True}},
    "scaled by a norm, given": {"norm": True, **FIXED},
}
