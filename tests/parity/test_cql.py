"""CQLLoss against torchrl, whose penalty it computes under ``upstream=True``."""

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


def build(
    lib,
    *,
    box=UNIT,
    tanh=True,
    shared=False,
    critics=0,
    estimator=None,
    keys=None,
    spec=True,
    **kwargs,
):
    """CQL; ``critics`` hands a list of so many networks, ``spec`` gives the actor its spec."""
    keys = keys or {}
    action = keys.get("action", "action")
    out = keys.get("state_action_value", "state_action_value")
    common = nets.trunk() if shared else None
    actor = nets.stochastic(lib, box=box, tanh=tanh, action=action, common=common, spec=spec)
    made = [nets.critic(lib, action=action, common=common, out=out) for _ in range(critics or 1)]
    if lib.name == "rlobj":
        kwargs["upstream"] = True
    if not spec:
        kwargs["action_spec"] = nets.bounded(lib, box)
    loss = lib.losses.CQLLoss(actor, made if critics else made[0], **{"num_random": 3, **kwargs})
    loss.set_keys(**keys)
    nets.estimate(lib, loss, estimator)
    return loss


def config(name, updater=SOFT, shape=(8,), own_modules=True, names=None, data=None, **kwargs):
    box = kwargs.get("box", UNIT)
    make = partial(batch, *shape, box=box, names=names, **(data or {}))
    return Config(name, partial(build, **kwargs), make, updater, own_modules, LEFT_BEHIND)


LAGRANGE = {"with_lagrange": True, "lagrange_thresh": 1.5}
NOTES = {"pred_q1": "p1", "pred_q2": "p2", "cql_q1_loss": "c1", "cql_q2_loss": "c2"}
CONFIGS = [
    config(name, **kwargs)
    for name, kwargs in {
        "default": {},
        "ten samples": {"num_random": 10},
        "one sample": {"num_random": 1},
        "temperature": {"temperature": 0.3},
        "weight": {"min_q_weight": 5.0},
        "max_q_backup": {"max_q_backup": True},
        "max_q_backup, time": {"max_q_backup": True, "shape": (4, 3)},
        "entropy in the target": {"deterministic_backup": False},
        "lagrange": LAGRANGE,
        "lagrange, sum": {**LAGRANGE, "reduction": "sum"},
        "lagrange, mask": {**LAGRANGE, "data": {"mask": True}, "shape": (4, 3)},
        "lagrange, everything": {
            **LAGRANGE,
            "max_q_backup": True,
            "deterministic_backup": False,
            "temperature": 2.0,
            "min_q_weight": 0.5,
        },
        "l1, hard updates": {"loss_function": "l1", "updater": hard(2)},
        "l2": {"loss_function": "l2", "updater": soft(0.3)},
        "sum": {"reduction": "sum"},
        "none": {"reduction": "none"},
        "none, excluded": {"reduction": "none", "scalar_output_mode": "exclude"},
        "none, non-tensor, time": {
            "reduction": "none",
            "scalar_output_mode": "non_tensor",
            "shape": (4, 3),
        },
        "mask": {"data": {"mask": True}},
        "mask, none": {"reduction": "none", "data": {"mask": True}},
        "mask, sum, time": {"reduction": "sum", "shape": (4, 3), "data": {"mask": True}},
        "weights are not read": {"data": {"weights": True}},
        "delayed actor": {"delay_actor": True},
        "nothing delayed": {"delay_qvalue": False, "updater": None},
        "list of critics": {"critics": 2},
        "list on a shared trunk": {"shared": True, "critics": 2, "updater": None},
        "n steps": {"data": {"steps": 3}},
        # torchrl never updates the target of a trunk that the critics do not train
        "shared trunk": {"shared": True, "updater": None},
        "gamma": {"estimator": ("TD0", {"gamma": 0.7})},
        "TD1": {"estimator": ("TD1", {"gamma": 0.9}), "shape": (4, 3), "names": TIME},
        "TDLambda": {
            "estimator": ("TDLambda", {"gamma": 0.9, "lmbda": 0.8}),
            "shape": (4, 3),
            "names": TIME,
        },
        "skewed bounds": {"box": SKEWED},
        "skewed bounds, max_q_backup": {"box": SKEWED, "max_q_backup": True},
        "normal": {"tanh": False},
        "time": {"shape": (4, 3)},
        "time and agents": {"shape": (4, 3, 2)},
        "renamed": {"keys": {**nets.KEYS, **NOTES}, "spec": False, "data": {"rename": nets.RENAME}},
        "no vmap": {"deactivate_vmap": True},
        "fixed alpha": {"fixed_alpha": True, "alpha_init": 0.3},
        "alpha too low": {"alpha_init": 0.3, "min_alpha": 0.5},
        "alpha too high": {"alpha_init": 3.0, "max_alpha": 0.5},
        "target entropy": {"target_entropy": -7.0},
        "action_spec": {"spec": False},
        "torchrl's modules": {"own_modules": False},
        "torchrl's modules, lagrange, skewed": {"own_modules": False, "box": SKEWED, **LAGRANGE},
    }.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("data", [{}, {"mask": True}])
def test_parts_called_alone(data: dict, reduction: str) -> None:
    """Ours report what torchrl's write into the batch for one another to read."""
    alone = config("alone", reduction=reduction, shape=(4, 3), data=data, **LAGRANGE)
    reported = ("pred_value", "cql_gap", "bc_log_prob", "log_prob", "_log_prob")
    compare_methods(
        alone, "q_loss", "cql_loss", "actor_bc_loss", "actor_loss", skip=(*reported, *NOTES)
    )


def test_torchrls_parts_need_what_others_left_in_the_batch() -> None:
    alone = config("alone", alpha_init=0.5, **LAGRANGE)
    theirs, ours = pair(alone)
    fresh, batch = alone.batch(), alone.batch()
    with pytest.raises(KeyError, match="Couldn't find the pred_q1"):
        seeded(theirs.cql_loss, fresh)
    seeded(theirs.q_loss, batch)
    penalty, info = seeded(ours.cql_loss, fresh)
    torch.testing.assert_close(penalty, seeded(theirs.cql_loss, batch)[0])
    dual, _ = ours.alpha_prime_loss(info["cql_gap"])
    assert dual.ndim > 0
    torch.testing.assert_close(dual.mean(), theirs.alpha_prime_loss(batch)[0].mean())
    log_prob = torch.arange(8.0)
    temperature, _ = theirs.alpha_loss({"_log_prob": log_prob})
    assert ours.alpha_loss(log_prob).shape == log_prob.shape
    torch.testing.assert_close(ours.alpha_loss(log_prob).mean(), temperature)
    assert temperature.abs() > 0.1


def test_keywords() -> None:
    compare_keywords(config("default"))
