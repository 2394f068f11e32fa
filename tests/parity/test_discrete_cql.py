"""DiscreteCQLLoss against torchrl."""

from functools import partial

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential

from tests.parity.discrete import TIME, WIDTHS, batch, configs, extra, mlp, settle, spec_of
from tests.parity.harness import (
    Config,
    compare,
    compare_keywords,
    compare_methods,
    hard,
    libraries,
    seeded,
    soft,
)

pytestmark = pytest.mark.parity

KEYS = {"action": ("agent", "action"), "action_value": "q", "value": "best_q"}
NAMED = {
    "action_key": ("agent", "action"),
    "action_value_key": "q",
    "chosen_action_value_key": "best_q",
}


def network(lib, kind, space, **named):
    if kind == "module":
        return mlp()
    if kind == "sequence":
        body = TensorDictModule(mlp(), in_keys=["observation"], out_keys=["action_value"])
        head = lib.modules.QValueModule(
            spec=spec_of(lib, space), var_nums=list(WIDTHS) if space == "mult_one_hot" else None
        )
        net = TensorDictSequential(body, head)
        net.var_nums = list(WIDTHS)
        return net
    return lib.modules.QValueActor(mlp(), spec=spec_of(lib, space), **named)


def cql(
    lib,
    kind="actor",
    space="one_hot",
    keys=None,
    estimator=None,
    hyper=None,
    upstream=True,
    **kwargs,
):
    named = NAMED if keys == KEYS else {}
    if lib.name == "rlobj":
        kwargs["upstream"] = upstream
    loss = lib.losses.DiscreteCQLLoss(network(lib, kind, space, **named), **kwargs)
    settle(loss, keys, estimator, **(hyper or {}))
    return loss


INDEX = {"space": "categorical"}
TABLE = {
    "default": ({}, {}),
    "l1": ({"loss_function": "l1"}, {}),
    "smooth l1, sum": ({"loss_function": "smooth_l1", "reduction": "sum"}, {}),
    "reduction none": ({"reduction": "none"}, {}),
    "no delay": ({"delay_value": False}, {}, {"updater": None}),
    "hard update": ({}, {}, {"updater": hard(1)}),
    "soft update, eps": (
        {}, {}, {"updater": lambda lib, loss: lib.losses.SoftUpdate(loss, eps=0.9)},
    ),
    "fast update, weighted terms": ({}, {}, {"updater": soft(0.5), "weights": {"loss_cql": 5.0}}),
    "categorical": (INDEX, INDEX),
    "categorical, windows": (INDEX, {**INDEX, "size": (3, 4)}),
    "indices in the batch, one-hot network": ({"action_space": "categorical"}, INDEX),
    "bare module, one-hot": ({"kind": "module", "action_space": "one-hot"}, {}),
    "bare module, categorical": (
        {"kind": "module", "action_space": "categorical", "reduction": "sum"}, INDEX,
    ),
    "sequence": ({"kind": "sequence", "action_space": "one_hot"}, {}),
    "td0, gamma 0.5": ({"estimator": "td0", "hyper": {"gamma": 0.5}}, {}),
    "windows": ({"estimator": "td0", "hyper": {"gamma": 0.8}}, {"size": (3, 4)}),
    "td1": ({"estimator": "td1", "hyper": {"gamma": 0.8}}, {"size": (3, 4), "names": TIME}),
    "td lambda": (
        {"estimator": "tdlambda", "hyper": {"gamma": 0.9, "lmbda": 0.7}, "loss_function": "l1"},
        {"size": (3, 4), "names": TIME},
    ),
    "td lambda, agents": (
        {"estimator": "tdlambda", "hyper": {"gamma": 0.9}},
        {"size": (3, 4, 2), "names": (None, "time", None)},
    ),
    "mask": ({}, extra("mask")),
    "mask, none": ({"reduction": "none"}, extra("mask")),
    "mask, sum, windows": ({"reduction": "sum"}, {"size": (3, 4), **extra("mask")}),
    "weights are not read": ({}, extra("priority_weight")),
    "n steps": ({}, extra("steps_to_next_obs")),
    "no termination in the batch": ({}, {"drop": (("next", "terminated"),)}),
    "renamed entries": (
        {"keys": {"reward": "r", "done": "d", "terminated": "t", "priority": "p",
                  "pred_val": "scores"}},
        {"rename": {("next", "reward"): ("next", "r"), ("next", "done"): ("next", "d"),
                    ("next", "terminated"): ("next", "t")}},
    ),
    "renamed outputs of the network": (
        {"keys": KEYS}, {"rename": {"action": ("agent", "action")}},
    ),
    "composed actions": (
        {"kind": "sequence", "space": "mult_one_hot", "action_space": "mult_one_hot"},
        {"space": "mult_one_hot"},
    ),
    "torchrl's modules": ({}, {}, {"own_modules": False}),
    "torchrl's modules, categorical": (INDEX, INDEX, {"own_modules": False}),
}  # fmt: skip


@pytest.mark.parametrize("config", configs(cql, TABLE), ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_parts_called_alone(reduction: str) -> None:
    """Ours report per sample what torchrl's average, and leave the batch to ``forward``."""
    (config,) = configs(cql, {"alone": ({"reduction": reduction}, extra("mask"))})
    reported = ("td_error", "pred_value", "target_value")
    compare_methods(config, "value_loss", "cql_loss", skip=(*reported, "pred_val"))


def test_keywords() -> None:
    (config,) = configs(cql, {"keywords": ({}, {})})
    compare_keywords(config)


def test_torchrl_never_reads_its_delayed_network() -> None:
    found = []
    for lib in libraries():
        loss = seeded(partial(cql, upstream=False), lib)
        before = seeded(loss, batch())["loss_qvalue"].item()
        for param in seeded(getattr, loss, "target_value_network_params").values(True, True):
            param.data.mul_(3)
        found.append((before, seeded(loss, batch())["loss_qvalue"].item()))
    (theirs, theirs_moved), (ours, ours_moved) = found
    assert theirs == pytest.approx(ours)
    assert theirs_moved == theirs
    assert abs(ours_moved - ours) > 0.1


def test_torchrl_sums_over_parts_of_composed_actions() -> None:
    """Over the entries of the action values, where the paper sums over actions: their products."""
    found = []
    for lib in libraries():
        several = {"space": "mult_one_hot", "action_space": "mult_one_hot"}
        build = partial(cql, kind="sequence", upstream=False, **several)
        data = batch(space="mult_one_hot")
        penalty = seeded(seeded(build, lib), data)["loss_cql"]
        scores = data["pred_val"]
        soft = torch.stack([p.logsumexp(-1) for p in scores.split(WIDTHS, -1)]).sum(0)
        sums = scores.logsumexp(-1) if lib.name == "torchrl" else soft
        expected = (sums - (scores * data["action"]).sum(-1)).mean()
        torch.testing.assert_close(penalty, expected)
        found.append(penalty.item())
    assert abs(found[0] - found[1]) > 0.1
