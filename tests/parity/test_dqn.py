"""DQNLoss and DistributionalDQNLoss against torchrl."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from tests.parity.discrete import (
    ACTIONS,
    TIME,
    WIDTHS,
    batch,
    configs,
    extra,
    mlp,
    settle,
    spec_of,
)
from tests.parity.harness import Config, compare, compare_keywords, hard, libraries, seeded, soft

pytestmark = pytest.mark.parity

VALUES = {"action": ("agent", "action"), "action_value": "q", "value": "best_q"}
NAMED = {
    "action_key": ("agent", "action"),  # torchrl finds an action's spec under "action" only
    "action_value_key": "q",
    "chosen_action_value_key": "best_q",
}


class Greedy(nn.Module):
    """Switches, their values and the value of the best combination: a network of the user's."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, observation):
        values = self.net(observation)
        action = (values > 0).long()
        return action, values, (values * action).sum(-1, keepdim=True)


def network(lib, kind, space, **named):
    if kind == "module":
        return mlp()
    if kind == "binary":
        keys = ["action", "action_value", "chosen_action_value"]
        return TensorDictModule(Greedy(), in_keys=["observation"], out_keys=keys)
    if kind == "sequence":  # upstream's QValueActor cannot say how wide the choices are
        body = TensorDictModule(mlp(), in_keys=["observation"], out_keys=["action_value"])
        head = lib.modules.QValueModule(spec=spec_of(lib, space), var_nums=list(WIDTHS))
        return TensorDictSequential(body, head)
    return lib.modules.QValueActor(mlp(), spec=spec_of(lib, space), **named)


def dqn(lib, kind="actor", space="one_hot", keys=None, estimator=None, hyper=None, **kwargs):
    named = NAMED if keys == VALUES else {}
    loss = lib.losses.DQNLoss(network(lib, kind, space, **named), **kwargs)
    return settle(loss, keys, estimator, **(hyper or {}))


DQN = {
    "default": ({}, {}),
    "l1, reduction sum": ({"loss_function": "l1", "reduction": "sum"}, {}),
    "smooth l1, reduction none": ({"loss_function": "smooth_l1", "reduction": "none"}, {}),
    "double": ({"double_dqn": True}, {}),
    "double, categorical": (
        {"double_dqn": True, "space": "categorical"},
        {"space": "categorical"},
        {"updater": hard(1)},
    ),
    "categorical, a column of indices": (
        {"space": "categorical"},
        {"space": "categorical", "column": True},
    ),
    "no delay": ({"delay_value": False}, {}, {"updater": None}),
    "soft update, eps": (
        {"hyper": {"gamma": 0.9}},
        {},
        {"updater": lambda lib, loss: lib.losses.SoftUpdate(loss, eps=0.9)},
    ),
    "indices in the batch, one-hot network": (
        {"action_space": "categorical"}, {"space": "categorical"},
    ),
    "one-hot batch, network of indices": ({"space": "categorical", "action_space": "one_hot"}, {}),
    "bare module, one-hot": ({"kind": "module", "action_space": "one-hot"}, {}),
    "bare module, categorical, double": (
        {"kind": "module", "action_space": "categorical", "double_dqn": True},
        {"space": "categorical", "size": (3, 4)},
    ),
    "several choices, double": (
        {"kind": "sequence", "space": "mult_one_hot", "action_space": "mult_one_hot",
         "double_dqn": True},
        {"space": "mult_one_hot"},
    ),
    "switches": ({"kind": "binary", "action_space": "binary"}, {"space": "binary"}),
    "switches, double": (
        {"kind": "binary", "action_space": "binary", "double_dqn": True},
        {"space": "binary"},
    ),
    "td0, gamma 0.5, windows": (
        {"estimator": "td0", "hyper": {"gamma": 0.5}}, {"size": (3, 4)},
    ),
    "td1": ({"estimator": "td1", "hyper": {"gamma": 0.8}}, {"size": (3, 4), "names": TIME}),
    "td lambda": (
        {"estimator": "tdlambda", "hyper": {"gamma": 0.9, "lmbda": 0.7}},
        {"size": (3, 4), "names": TIME},
    ),
    "td lambda, double, agents": (
        {"estimator": "tdlambda", "double_dqn": True},
        {"size": (3, 4, 2), "names": (None, "time", None)},
    ),
    "mask": ({}, extra("mask")),
    "mask and weights, none": ({"reduction": "none"}, extra("mask", "priority_weight")),
    "weights": ({}, extra("priority_weight")),
    "weights, sum, windows": (
        {"reduction": "sum"}, {"size": (3, 4), **extra("priority_weight")},
    ),
    "weights not asked for": (
        {"use_prioritized_weights": False}, extra("priority_weight"),
    ),
    "n steps": ({}, extra("steps_to_next_obs")),
    "renamed entries": (
        {"keys": {"reward": "r", "done": "d", "terminated": "t", "priority": "p"}},
        {"rename": {("next", "reward"): ("next", "r"), ("next", "done"): ("next", "d"),
                    ("next", "terminated"): ("next", "t")}},
    ),
    "renamed outputs of the network": (
        {"keys": VALUES}, {"rename": {"action": ("agent", "action")}},
    ),
    "renamed outputs of the network, double": (
        {"keys": VALUES, "double_dqn": True}, {"rename": {"action": ("agent", "action")}},
    ),
    "no termination in the batch": ({}, {"drop": (("next", "terminated"),)}),
    "torchrl's modules": ({}, {}, {"own_modules": False}),
    "torchrl's modules, categorical, double": (
        {"space": "categorical", "double_dqn": True},
        {"space": "categorical"},
        {"own_modules": False},
    ),
}  # fmt: skip


class Atoms(nn.Module):
    def __init__(self, atoms):
        super().__init__()
        self.net, self.atoms = mlp(atoms * ACTIONS), atoms

    def forward(self, observation):
        return self.net(observation).unflatten(-1, (self.atoms, ACTIONS))


def c51(
    lib, space="one_hot", support=(-3.0, 3.0, 7), normalised=False, keys=None, gamma=0.9,
    assign=None, masked=False, **kwargs
):  # fmt: skip
    net = Atoms(support[-1])
    named = {"action_value_key": "p"} if keys and "action_value" in keys else {}
    if normalised:
        net = nn.Sequential(net, nn.LogSoftmax(-2))
    actor = lib.modules.DistributionalQValueActor(
        net, support=torch.linspace(*support), spec=spec_of(lib, space),
        make_log_softmax=not normalised, action_mask_key="allowed" if masked else None, **named,
    )  # fmt: skip
    loss = settle(lib.losses.DistributionalDQNLoss(actor, gamma=gamma, **kwargs), keys)
    if assign is not None:
        loss.gamma = assign
    return loss


INDEX = {"space": "categorical"}
C51 = {
    "default": ({}, {}),
    "reduction sum": ({"reduction": "sum"}, {}),
    "reduction none": ({"reduction": "none"}, {}),
    "gamma 0.5": ({"gamma": 0.5}, {}),
    "gamma assigned": ({"assign": 0.3}, {}),
    "gamma 1": ({"gamma": 1.0}, {}),
    "narrow support": ({"support": (-0.5, 0.5, 5)}, {}),
    "lopsided support": ({"support": (-1.0, 9.0, 11)}, {}),
    "negative support": ({"support": (-8.0, -1.0, 4)}, {}),
    "two atoms": ({"support": (-2.0, 2.0, 2)}, {}),
    "categorical": (INDEX, INDEX),
    "categorical, a column": (INDEX, {**INDEX, "column": True}),
    "no delay": ({"delay_value": False}, {}, {"updater": None}),
    "hard update": ({}, {}, {"updater": hard(1)}),
    "fast update": ({}, {}, {"updater": soft(0.5)}),
    "normalised by the network": ({"normalised": True}, {}),
    "n steps": ({}, extra("steps_to_next_obs")),
    "n steps, categorical": (INDEX, {**INDEX, **extra("steps_to_next_obs")}),
    "weights": ({}, extra("priority_weight")),
    "weights, sum": ({"reduction": "sum"}, extra("priority_weight")),
    "weights not asked for": ({"use_prioritized_weights": False}, extra("priority_weight")),
    "mask": ({}, extra("mask")),
    "mask, none": ({"reduction": "none"}, extra("mask")),
    "mask and weights": (INDEX, {**INDEX, **extra("mask", "priority_weight")}),
    "no termination in the batch": ({}, {"drop": (("next", "terminated"),)}),
    "renamed": (
        {"keys": {"reward": "r", "done": "d", "terminated": "t", "priority": "w",
                  "action_value": "p", "steps_to_next_obs": "k", "priority_weight": "pw"}},
        {"rename": {("next", "reward"): ("next", "r"), ("next", "done"): ("next", "d"),
                    ("next", "terminated"): ("next", "t"), "steps_to_next_obs": "k",
                    "priority_weight": "pw"},
         **extra("steps_to_next_obs", "priority_weight")},
    ),
    "torchrl's modules": ({}, {}, {"own_modules": False}),
    "torchrl's modules, categorical": (INDEX, INDEX, {"own_modules": False}),
}  # fmt: skip


@pytest.mark.parametrize("config", configs(dqn, DQN), ids=lambda c: c.name)
def test_dqn_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("config", configs(c51, C51), ids=lambda c: c.name)
def test_c51_equals_torchrl(config: Config) -> None:
    compare(config)


def test_keywords() -> None:
    (config,) = configs(dqn, {"keywords": ({"double_dqn": True}, {})})
    compare_keywords(config)


def test_torchrl_refuses_windows_of_time_in_c51() -> None:
    for lib in libraries():
        loss, data = seeded(c51, lib), batch(3, 4)
        if lib.name == "torchrl":
            with pytest.raises(AttributeError, match="__name___"):
                seeded(loss, data)
        else:
            assert seeded(loss, data)["loss"] == seeded(loss, data.reshape(12))["loss"]
