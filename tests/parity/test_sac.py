"""SACLoss, with and without a value network, against torchrl."""

from functools import partial

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

from tests.parity import continuous as nets
from tests.parity.continuous import LEFT_BEHIND, SKEWED, TIME, UNIT, batch
from tests.parity.harness import Config, compare, compare_keywords, compare_methods, hard, soft

pytestmark = pytest.mark.parity

SOFT = soft()
ALL = ("actor", "v", "q")


def build(
    lib,
    *,
    v=False,
    box=UNIT,
    tanh=True,
    shared=(),
    critics=0,
    estimator=None,
    keys=None,
    vmap=None,
    spec=True,
    **kwargs,
):
    """SAC; ``v`` adds a value network, ``critics`` hands a list of so many networks, ``shared``
    names the networks that have a trunk in common."""
    keys = keys or {}
    action = keys.get("action", "action")
    out = {"out": keys.get("state_action_value", "state_action_value")}
    trunk = nets.trunk()
    common = {name: trunk if name in shared else None for name in ALL}
    actor = nets.stochastic(
        lib, box=box, tanh=tanh, action=action, common=common["actor"], spec=spec
    )
    made = [nets.critic(lib, action=action, common=common["q"], **out) for _ in range(critics or 1)]
    value = nets.value(lib, out=keys.get("value", "state_value"), common=common["v"]) if v else None
    if not spec:
        kwargs.setdefault("action_spec", nets.bounded(lib, box))
    loss = lib.losses.SACLoss(actor, made if critics else made[0], value, **kwargs)
    loss.set_keys(**keys)
    nets.estimate(lib, loss, estimator)
    return loss


def config(name, updater=SOFT, shape=(8,), own_modules=True, names=None, data=None, **kwargs):
    box = kwargs.get("box", UNIT)
    make = partial(batch, *shape, box=box, names=names, **(data or {}))
    return Config(name, partial(build, **kwargs), make, updater, own_modules, skip=LEFT_BEHIND)


SEPARATE = {"separate_losses": True, "delay_value": False, "updater": None}
BOTH = {  # with and without the value network
    "default": {},
    "l1, hard updates": {"loss_function": "l1", "updater": hard(2)},
    "l2, eps": {
        "loss_function": "l2",
        "updater": lambda lib, loss: lib.losses.SoftUpdate(loss, eps=0.7),
    },
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "none, excluded": {"reduction": "none", "scalar_output_mode": "exclude"},
    "none, non-tensor": {"reduction": "none", "scalar_output_mode": "non_tensor"},
    "delayed actor": {"delay_actor": True},
    "nothing delayed": {"delay_qvalue": False, "delay_value": False, "updater": None},
    "four critics": {"num_qvalue_nets": 4},
    "list of critics": {"critics": 2},
    # torchrl mixes up the trunks of a delayed value network, and never updates the target of a
    # trunk that the critics do not train
    "shared trunk": {"shared": ALL, "delay_value": False},
    "list on a shared trunk": {
        "shared": ALL,
        "critics": 2,
        "delay_value": False,
        "updater": None,
    },
    "separate losses, list": {"shared": ALL, "critics": 2, **SEPARATE},
    "separate losses": {"shared": ALL, **SEPARATE},
    "separate losses, trunk of the values": {"shared": ("v", "q"), **SEPARATE},
    "n steps": {"data": {"steps": 3}},
    "no ends to skip": {"skip_done_states": True, "data": {"ends": False}},
    "gamma": {"estimator": ("TD0", {"gamma": 0.7})},
    "TD1": {"estimator": ("TD1", {"gamma": 0.9}), "shape": (4, 3), "names": TIME},
    "TDLambda": {
        "estimator": ("TDLambda", {"gamma": 0.9, "lmbda": 0.8}),
        "shape": (4, 3),
        "names": TIME,
    },
    "skewed bounds": {"box": SKEWED},
    "normal": {"tanh": False},
    "time": {"shape": (4, 3)},
    "time and agents": {"shape": (4, 3, 2)},
    "mask": {"data": {"mask": True}},
    "mask, sum, time": {"reduction": "sum", "shape": (4, 3), "data": {"mask": True}},
    "mask, none": {"reduction": "none", "data": {"mask": True}},
    "weights": {"data": {"weights": True}},
    "weights, sum": {"reduction": "sum", "data": {"weights": True}},
    "weights, none": {"reduction": "none", "data": {"weights": True}},
    "weights off": {"use_prioritized_weights": False, "data": {"weights": True}},
    "weights and mask": {"data": {"weights": True, "mask": True}},
    "renamed": {"keys": {**nets.KEYS, "value": "v"}, "data": {"rename": nets.RENAME}},
    "no vmap": {"deactivate_vmap": True},
    "fixed alpha": {"fixed_alpha": True, "alpha_init": 0.3},
    "alpha within": {"alpha_init": 0.3, "min_alpha": 0.1, "max_alpha": 2.0},
    "alpha too low": {"alpha_init": 0.3, "min_alpha": 0.5},
    "alpha too high": {"alpha_init": 3.0, "max_alpha": 0.5},
    "alpha fixed outside": {"alpha_init": 3.0, "max_alpha": 0.5, "fixed_alpha": True},
    "target entropy": {"target_entropy": -7.0},
    "action_spec": {"spec": False},
    "torchrl's modules": {"own_modules": False},
    "torchrl's modules, skewed": {"own_modules": False, "box": SKEWED, "shape": (4, 3)},
}
CONFIGS = [
    config(f"{name}, {version}", v=version == "v1", **kwargs)
    for version in ("v1", "v2")
    for name, kwargs in BOTH.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("v", [False, True])
def test_parts_called_alone(v: bool, reduction: str) -> None:
    parts = ("qvalue_v1_loss", "value_loss") if v else ("qvalue_v2_loss",)
    given = {"shape": (4, 3), "data": {"mask": True, "weights": True}}
    alone = config("alone", v=v, reduction=reduction, **given)
    compare_methods(alone, *parts, "actor_loss", skip=("value",))  # which ours reports


def test_keywords() -> None:
    compare_keywords(config("default", v=True))
