"""BCLoss against torchrl."""

import importlib
from functools import partial

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict.nn import TensorDictModule
from torch import nn

from tests.parity import continuous as nets
from tests.parity.continuous import ACT, OBS, SKEWED, UNIT, batch
from tests.parity.harness import Config, compare

pytestmark = pytest.mark.parity

STEPS, ACTIONS = 3, 5
CHUNK, PAD = ("plan", "chunk"), "action_is_pad"


def deterministic(lib, box, action):
    layers = nn.Sequential(nn.Linear(OBS, ACT), nn.Tanh())
    return lib.modules.Actor(layers, out_keys=[action], spec=nets.bounded(lib, box))


def scores(lib, box, action):
    """Logits over actions, and no distribution."""
    return TensorDictModule(nn.Linear(OBS, ACTIONS), in_keys=["observation"], out_keys=[action])


def chunks(lib, box, action):
    """The next few actions at once."""
    layers = nn.Sequential(nn.Linear(OBS, STEPS * ACT), nn.Unflatten(-1, (STEPS, ACT)))
    return TensorDictModule(layers, in_keys=["observation"], out_keys=[action])


def squashed(lib, box, action):
    return nets.stochastic(lib, box=box, action=action)


def normal(lib, box, action):
    return nets.stochastic(lib, tanh=False, action=action)


def build(lib, *, actor=deterministic, box=UNIT, writes=None, keys=None, **kwargs):
    """BC; ``writes`` is the actor's out-key where it is not the loss's action key."""
    keys = keys or {}
    made = actor(lib, box, writes or keys.get("action", "action"))
    loss = importlib.import_module(f"{lib.losses.__name__}.bc").BCLoss(made, **kwargs)
    loss.set_keys(**keys)
    return loss


def data(*shape, action="action", kind="float", pad=False, **kwargs):
    """A batch whose action is a vector, an index or a chunk of vectors."""
    made, generator = batch(*shape, **kwargs), torch.Generator().manual_seed(3)
    if kind != "float":
        made["action"] = torch.randint(ACTIONS, shape, generator=generator)
    if kind == "column":
        made["action"] = made["action"].unsqueeze(-1)
    if kind == "chunk":
        made["action"] = torch.randn(*shape, STEPS, ACT, generator=generator)
    if pad:
        made[PAD] = torch.rand(*shape, STEPS, generator=generator) < 0.4
    return made.rename_key_("action", action) if action != "action" else made


def config(name, shape=(8,), own_modules=True, batch=None, **kwargs):
    make = partial(data, *shape, box=kwargs.get("box", UNIT), **(batch or {}))
    return Config(name, partial(build, **kwargs), make, None, own_modules)


def uneven(predicted, action):
    """Too much costs twice as much as too little."""
    difference = predicted - action
    return torch.maximum(2 * difference, -difference)


CHUNKED = {"actor": chunks, "keys": {"action": CHUNK}, "batch": {"kind": "chunk", "action": CHUNK}}
PADDED = {
    "actor": chunks,
    "keys": {"action": CHUNK, "pad_mask": PAD},
    "batch": {"kind": "chunk", "action": CHUNK, "pad": True},
    "loss_function": "l1",
}
CONFIGS = [
    config(name, **kwargs)
    for name, kwargs in {
        "deterministic": {},
        "deterministic, l1": {"loss_function": "l1"},
        "deterministic, l2": {"loss_function": "l2"},
        "deterministic, mse": {"loss_function": "mse"},
        "deterministic, smooth l1, skewed": {"loss_function": "smooth_l1", "box": SKEWED},
        "deterministic, a function": {"loss_function": uneven},
        "deterministic, sum": {"reduction": "sum"},
        "deterministic, none": {"reduction": "none"},
        "likelihood": {"actor": squashed},
        "likelihood, skewed": {"actor": squashed, "box": SKEWED},
        "likelihood, normal, time": {"actor": normal, "shape": (4, 3)},
        "likelihood, sum": {"actor": squashed, "reduction": "sum"},
        "likelihood, none, agents": {"actor": squashed, "reduction": "none", "shape": (4, 3, 2)},
        "stochastic, l1": {"actor": squashed, "loss_function": "l1"},
        "stochastic, l2, skewed": {"actor": squashed, "loss_function": "l2", "box": SKEWED},
        "integers": {"actor": scores, "batch": {"kind": "index"}},
        "integers in a column": {"actor": scores, "batch": {"kind": "column"}},
        "integers, named, none": {
            "actor": scores,
            "loss_function": "cross_entropy",
            "reduction": "none",
            "batch": {"kind": "index"},
        },
        "mask": {"batch": {"mask": True}},
        "mask, likelihood": {"actor": squashed, "batch": {"mask": True}},
        "mask, likelihood, sum, time": {
            "actor": squashed,
            "reduction": "sum",
            "batch": {"mask": True},
            "shape": (4, 3),
        },
        "mask, none": {"reduction": "none", "batch": {"mask": True}},
        "weights are not read": {"batch": {"weights": True}},
        "renamed": {"keys": {"action": "move"}, "batch": {"action": "move"}},
        "renamed, stochastic": {
            "actor": squashed,
            "keys": {"action": ("own", "move")},
            "batch": {"action": ("own", "move")},
        },
        "actor writes elsewhere": {
            "keys": {"action": "move"},
            "writes": "action",
            "batch": {"action": "move"},
        },
        "chunks": CHUNKED,
        "chunks, l1, time": {**CHUNKED, "loss_function": "l1", "shape": (4, 3)},
        "padded": PADDED,
        "padded, sum": {**PADDED, "reduction": "sum"},
        "padded, time, mask": {
            **PADDED,
            "shape": (4, 3),
            "batch": {**PADDED["batch"], "mask": True},
        },
        "pad_mask missing": {**PADDED, "batch": CHUNKED["batch"]},
        "torchrl's modules": {"own_modules": False},
        "torchrl's modules, likelihood": {"own_modules": False, "actor": squashed, "box": SKEWED},
    }.items()
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_torchrl(config: Config) -> None:
    compare(config)
