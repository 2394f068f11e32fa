"""QMixerLoss against torchrl."""

from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import NestedKey, TensorDict, unravel_key
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests.parity.discrete import settle
from tests.parity.harness import (
    Config,
    Library,
    compare,
    hard,
    libraries,
    seeded,
    soft,
)

pytestmark = pytest.mark.parity

AGENTS, OBS, STATE, ACTIONS = 3, 4, (2, 3), 5
TIME = (None, "time")
NAMED = {
    "action": ("crew", "action"),
    "action_value": ("crew", "q"),
    "local_value": ("crew", "best"),
    "global_value": ("team", "q"),
    "reward": "pay",
    "done": "stop",
    "terminated": "over",
    "priority": "urgency",
    "advantage": "a",
    "value_target": "t",
}
MOVED: dict[NestedKey, NestedKey] = {
    ("agents", "action"): ("crew", "action"),
    **{("next", k): ("next", NAMED[k]) for k in ("reward", "done", "terminated")},
}


class Memory(nn.Module):
    """Action values, and something for the mixer to read."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(OBS, ACTIONS)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        values = self.net(observation)
        return values, values.mean((-1, -2)).unsqueeze(-1)


class Told(nn.Module):
    """A mixer of the user's: a weighted sum, and what the agents left."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(AGENTS, 1))

    def forward(self, values: Tensor, told: Tensor) -> Tensor:
        return (values * self.weights).sum(-2) + told


def agents(lib: Library, net: str, space: str, action_space: Any, keys: Mapping) -> nn.Module:
    """A greedy local network; where ``action_space`` says so, the loss is told the space alone."""
    centralized, share = "all" in net, "one" in net
    module = Memory() if net == "memory" else lib.modules.MultiAgentMLP(
        OBS, ACTIONS, AGENTS, centralized=centralized, share_params=share, depth=1, num_cells=6
    )  # fmt: skip
    value = keys.get("action_value", ("agents", "action_value"))
    written = [value, "told"] if net == "memory" else [value]
    spec = {"one_hot": "OneHot", "categorical": "Categorical"}[space]
    shape = (AGENTS, ACTIONS) if space == "one_hot" else (AGENTS,)
    return lib.modules.QValueActor(
        TensorDictModule(module, [("agents", "observation")], written),
        spec=lib.specs.Composite(
            agents=lib.specs.Composite(
                action=getattr(lib.specs, spec)(ACTIONS, shape), shape=(AGENTS,)
            )
        )
        if action_space == "composite"
        else None,
        action_space=space,
        action_key=keys.get("action", ("agents", "action")),
        action_value_key=value,
        chosen_action_value_key=keys.get("local_value", ("agents", "chosen_action_value")),
    )


def mixer(lib: Library, kind: str, keys: Mapping) -> nn.Module:
    net = {
        "qmix": lambda: lib.modules.QMixer(STATE, 4, AGENTS, "cpu"),
        "vdn": lambda: lib.modules.VDNMixer(AGENTS, "cpu"),
        "told": Told,
    }[kind]()
    also = {"qmix": ["state"], "told": ["told"], "vdn": []}[kind]
    read = [keys.get("local_value", ("agents", "chosen_action_value")), *also]
    return TensorDictModule(net, read, [keys.get("global_value", "chosen_action_value")])


def qmix(
    lib: Library,
    net: str = "each",
    mix: str = "qmix",
    space: str = "one_hot",
    action_space: Any = None,
    keys: Mapping[str, NestedKey] | None = None,
    estimator: str | None = None,
    hyper: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    local = agents(lib, net, space, action_space, keys or {})
    told = space if action_space in (None, "composite") else action_space
    loss = lib.losses.QMixerLoss(local, mixer(lib, mix, keys or {}), action_space=told, **kwargs)
    return settle(loss, keys, estimator, **(hyper or {}))


def batch(
    *shape: int,
    space: str = "one_hot",
    names: tuple[str | None, ...] | None = None,
    rename: Mapping[NestedKey, NestedKey] | None = None,
    steps: bool = False,
    left: bool = False,
    drop: tuple[NestedKey, ...] = (),
) -> TensorDict:
    shape = shape or (10,)
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*shape, *size, generator=generator)

    index = draw(AGENTS, ACTIONS).argmax(-1)
    terminated, truncated = draw(1) > 0.8, draw(1) > 0.8
    data = {
        ("agents", "observation"): draw(AGENTS, OBS),
        ("agents", "action"): nn.functional.one_hot(index, ACTIONS)
        if space == "one_hot"
        else index,
        "state": draw(*STATE),
        ("next", "agents", "observation"): draw(AGENTS, OBS),
        ("next", "state"): draw(*STATE),
        ("next", "reward"): draw(1),
        ("next", "done"): terminated | truncated,
        ("next", "terminated"): terminated,
    }
    if steps:
        data["steps_to_next_obs"] = torch.randint(1, 4, (*shape, 1), generator=generator)
    for place in ((), ("next",)) if left else ():  # what the acting policy wrote
        data[(*place, "agents", "chosen_action_value")] = draw(AGENTS, 1)
        data[(*place, "agents", "action_value")] = draw(AGENTS, ACTIONS)
        data[(*place, "chosen_action_value")] = draw(1)
    made = TensorDict(data, list(shape))
    for old, new in (rename or {}).items():
        made.rename_key_(old, new)
    made = made.exclude(*drop)
    made.names = list(names) if names else [None] * len(shape)
    return made


INDEX = {"space": "categorical"}
TABLE: dict[str, tuple] = {
    "an MLP for each": ({}, {}),
    "one MLP": ({"net": "one"}, {}),
    "an MLP for each, of all": ({"net": "each, all"}, {}),
    "one MLP of all": ({"net": "one, all"}, {}),
    "vdn": ({"mix": "vdn"}, {}),
    "vdn, indices": ({"mix": "vdn", **INDEX}, INDEX),
    "indices": (INDEX, INDEX),
    "l1": ({"loss_function": "l1"}, {}),
    "smooth l1": ({"loss_function": "smooth_l1", "net": "one"}, {}),
    "no delay": ({"delay_value": False}, {}, {"updater": None}),
    "vdn, no delay": ({"delay_value": False, "mix": "vdn", **INDEX}, INDEX, {"updater": None}),
    "hard update": ({}, {}, {"updater": hard(1)}),
    "fast update, eps": (
        {}, {}, {"updater": lambda lib, loss: lib.losses.SoftUpdate(loss, eps=0.6)},
    ),
    "gamma": ({"hyper": {"gamma": 0.5}}, {}),
    "td0 by name": ({"estimator": "td0", "hyper": {"gamma": 0.8}}, {}),
    "td1": ({"estimator": "td1", "hyper": {"gamma": 0.9}}, {"size": (3, 4), "names": TIME}),
    "td lambda": (
        {"estimator": "tdlambda", "hyper": {"gamma": 0.9, "lmbda": 0.7}},
        {"size": (3, 4), "names": TIME},
    ),
    "td lambda, indices, vdn": (
        {"estimator": "tdlambda", "mix": "vdn", **INDEX},
        {"size": (2, 5), "names": TIME, **INDEX},
    ),
    "windows": ({}, {"size": (3, 4)}),
    "three axes": ({"net": "one"}, {"size": (2, 2, 3)}),
    "one row": ({}, {"size": (1,)}),
    "n steps": ({}, {"steps": True}),
    "n steps, vdn": ({"mix": "vdn", "hyper": {"gamma": 0.7}}, {"steps": True}),
    "no termination in the batch": ({}, {"drop": (("next", "terminated"),)}),
    "what the policy left in the batch": ({}, {"left": True}),
    "what the policy left, vdn, no delay": (
        {"mix": "vdn", "delay_value": False}, {"left": True}, {"updater": None},
    ),
    "spec in a composite": ({"action_space": "composite"}, {}),
    "spec in a composite, indices": ({"action_space": "composite", **INDEX}, INDEX),
    "one-hot with a dash": ({"action_space": "one-hot"}, {}),
    "one-hot batch, network of indices": ({**INDEX, "action_space": "one_hot"}, {}),
    "a mixer that reads what agents write": ({"net": "memory", "mix": "told"}, {}),
    "a mixer that reads it, no delay": (
        {"net": "memory", "mix": "told", "delay_value": False, **INDEX}, INDEX, {"updater": None},
    ),
    "renamed": ({"keys": NAMED}, {"rename": MOVED}),
    "renamed, vdn": ({"keys": NAMED, "mix": "vdn"}, {"rename": MOVED}),
    "torchrl's modules": ({}, {}, {"own_modules": False}),
    "torchrl's modules, one MLP of all": ({"net": "one, all"}, {}, {"own_modules": False}),
    "torchrl's modules, indices, vdn": (
        {"net": "each, all", "mix": "vdn", **INDEX}, INDEX, {"own_modules": False},
    ),
    "torchrl's modules, td lambda": (
        {"estimator": "tdlambda", "net": "one"}, {"size": (3, 4), "names": TIME},
        {"own_modules": False},
    ),
}  # fmt: skip


def config(name: str) -> Config:
    built, given, *rest = TABLE[name]
    given = dict(given)
    size = given.pop("size", ())
    return Config(
        name,
        lambda lib: qmix(lib, **built),
        lambda: batch(*size, **given),
        **{"updater": soft(0.3), **(rest[0] if rest else {})},
    )


@pytest.mark.parametrize("name", TABLE)
def test_qmixer_equals_torchrl(name: str) -> None:
    compare(config(name))


def losses(**kwargs: Any) -> dict[str, Any]:
    return {lib.name: seeded(lambda lib=lib: qmix(lib, **kwargs), seed=3) for lib in libraries()}


def test_torchrl_ignores_masks() -> None:
    """It averages over all steps; ours over the valid ones, so of these both are alike."""
    pair, data = losses(), batch(12)
    keep = torch.arange(12) % 3 > 0
    valid = seeded(pair["torchrl"], data[keep].clone())["loss"]
    data["collector", "mask"] = keep
    found = {k: seeded(loss, data.clone())["loss"] for k, loss in pair.items()}
    torch.testing.assert_close(found["rlobj"], valid)
    assert not torch.isclose(found["torchrl"], valid)


def test_torchrl_refuses_keywords_and_columns() -> None:
    for name, loss in losses(space="categorical").items():
        data = batch(space="categorical")
        entries = {unravel_key(k): data[unravel_key(k)] for k in loss.in_keys}
        named = {k if isinstance(k, str) else "_".join(k): v for k, v in entries.items()}
        column = data.clone()
        column["agents", "action"] = column["agents", "action"].unsqueeze(-1)
        if name == "torchrl":
            with pytest.raises(RuntimeError, match="batch dimension"):
                seeded(lambda loss=loss, named=named: loss(**named))
            with pytest.raises(RuntimeError):
                seeded(loss, column)
        else:
            expected = seeded(loss, data)["loss"]
            assert seeded(lambda loss=loss, named=named: loss(**named)) == expected
            assert seeded(loss, column)["loss"] == expected


def test_torchrl_refuses_bare_mixers() -> None:
    for lib in libraries():
        local, net = (
            agents(lib, "one", "categorical", None, {}),
            lib.modules.VDNMixer(AGENTS, "cpu"),
        )
        if lib.name == "torchrl":
            with pytest.raises(TypeError, match="incompatible with entries"):
                lib.losses.QMixerLoss(local, net)
        else:
            assert seeded(lib.losses.QMixerLoss(local, net), batch(space="categorical"))["loss"] > 0


def test_estimators_that_are_refused() -> None:
    for loss in losses().values():
        with pytest.raises(NotImplementedError):
            loss.make_value_estimator("gae")
