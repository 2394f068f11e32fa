"""IQLLoss against torchrl."""

from functools import partial

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch

from tests.parity import continuous as nets
from tests.parity.continuous import LEFT_BEHIND, SKEWED, TIME, UNIT, batch
from tests.parity.harness import (
    Config,
    compare,
    compare_keywords,
    compare_methods,
    hard,
    pair,
    seeded,
    soft,
)

pytestmark = pytest.mark.parity

SOFT = soft()
ALL = ("actor", "v", "q")


def build(lib, *, box=UNIT, tanh=True, shared=(), critics=0, estimator=None, keys=None, **kwargs):
    """IQL; ``critics`` hands a list of so many networks, ``shared`` names the networks that have a
    trunk in common."""
    keys = keys or {}
    action = keys.get("action", "action")
    out = keys.get("state_action_value", "state_action_value")
    trunk = nets.trunk()
    common = {name: trunk if name in shared else None for name in ALL}
    actor = nets.stochastic(lib, box=box, tanh=tanh, action=action, common=common["actor"])
    made = [
        nets.critic(lib, action=action, common=common["q"], out=out) for _ in range(critics or 1)
    ]
    value = nets.value(lib, out=keys.get("value", "state_value"), common=common["v"])
    loss = lib.losses.IQLLoss(actor, made if critics else made[0], value, **kwargs)
    loss.set_keys(**keys)
    nets.estimate(lib, loss, estimator)
    return loss


def config(name, updater=SOFT, shape=(8,), own_modules=True, names=None, data=None, **kwargs):
    box = kwargs.get("box", UNIT)
    make = partial(batch, *shape, box=box, names=names, **(data or {}))
    return Config(name, partial(build, **kwargs), make, updater, own_modules, skip=LEFT_BEHIND)


CONFIGS = [
    config(name, **kwargs)
    for name, kwargs in {
        "default": {},
        "l1, hard updates": {"loss_function": "l1", "updater": hard(2)},
        "l2": {"loss_function": "l2", "updater": soft(0.3)},
        "hard updates, every second": {"updater": hard(1)},
        "expectile": {"expectile": 0.8},
        "low expectile": {"expectile": 0.1},
        "temperature": {"temperature": 3.0},
        "capped weights": {"temperature": 60.0},
        "sum": {"reduction": "sum"},
        "none": {"reduction": "none"},
        "none, excluded": {"reduction": "none", "scalar_output_mode": "exclude"},
        "none, non-tensor": {"reduction": "none", "scalar_output_mode": "non_tensor"},
        "one critic": {"num_qvalue_nets": 1},
        "list of one critic": {"num_qvalue_nets": 1, "critics": 1},
        "four critics": {"num_qvalue_nets": 4},
        "list of critics": {"critics": 2},
        "shared trunk": {"shared": ALL},
        # torchrl never updates the target of a trunk that the critics do not train
        "list on a shared trunk": {"shared": ALL, "critics": 2, "updater": None},
        "separate losses": {"shared": ALL, "separate_losses": True, "updater": None},
        "separate losses, trunk of the values": {
            "shared": ("v", "q"),
            "separate_losses": True,
            "updater": None,
        },
        "separate losses, nothing shared": {"separate_losses": True},
        "separate losses, one critic": {
            "shared": ALL,
            "separate_losses": True,
            "num_qvalue_nets": 1,
            "updater": None,
        },
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
        "renamed": {"keys": {**nets.KEYS, "value": "v"}, "data": {"rename": nets.RENAME}},
        "renamed log-prob": {"keys": {"log_prob": "lp"}},
        "weights are not read": {"data": {"weights": True}},
        "no vmap": {"deactivate_vmap": True},
        "torchrl's modules": {"own_modules": False},
        "torchrl's modules, skewed": {"own_modules": False, "box": SKEWED, "shape": (4, 3)},
    }.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


def output(config: Config, ours: bool = True):
    return seeded(pair(config)[ours], config.batch())


def test_masked_critics() -> None:
    """torchrl loses the mask on the way to the critics' loss, and there alone; ours does not."""
    plain, masked = config("plain"), config("mask", data={"mask": True})
    theirs, ours = output(masked, ours=False), output(masked)
    for name in ("loss_actor", "loss_value"):
        torch.testing.assert_close(ours[name], theirs[name])
    torch.testing.assert_close(theirs["loss_qvalue"], output(plain, ours=False)["loss_qvalue"])
    each = output(config("none", reduction="none"))["loss_qvalue"]
    keep = masked.batch()["collector", "mask"].squeeze(-1)
    torch.testing.assert_close(ours["loss_qvalue"], each[keep].mean())


def test_n_step_transitions() -> None:
    """torchrl loses their length, too."""
    plain, squared = (config("one", estimator=("TD0", {"gamma": g})) for g in (0.9, 0.9**2))
    double = config("two", estimator=("TD0", {"gamma": 0.9}), data={"steps": 2})
    for one, other, ours in ((double, plain, False), (double, squared, True)):
        found = [output(c, ours)["loss_qvalue"] for c in (one, other)]
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_parts_called_alone(reduction: str) -> None:
    """Ours report what torchrl's write into the batch, where ours leave it to ``forward``."""
    reported = ("entropy", "weight", "log_prob", "value")
    alone = config("alone", reduction=reduction, shape=(4, 3))
    compare_methods(alone, "actor_loss", "value_loss", "qvalue_loss", skip=(*reported, "_log_prob"))


def test_keywords() -> None:
    compare_keywords(config("default"))
