"""Networks of teams, mixers and the acting Decision Transformer against torchrl's."""

import itertools
from typing import Any

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests.parity.harness import assert_same, leaves, libraries, seeded, tensors_of

pytestmark = pytest.mark.parity

AGENTS, IN, OUT = 3, 2, 4
MLPS: dict[str, dict[str, Any]] = {
    **{
        f"{c}, {s}, depth {d}": {"centralized": c, "share_params": s, "depth": d, "num_cells": 5}
        for c, s, d in itertools.product([False, True], [False, True], [0, 2])
    },
    "widths": {"centralized": False, "share_params": False, "num_cells": [5, 6]},
    "defaults": {"centralized": False, "share_params": True},
    "relu": {"centralized": True, "share_params": False, "depth": 1, "activation_class": nn.ReLU},
    "no bias": {"centralized": False, "share_params": False, "depth": 1, "bias_last_layer": False},
    "single bias": {
        "centralized": False, "share_params": False, "depth": 1, "single_bias_last_layer": True
    },
    "norm, active": {
        "centralized": False, "share_params": False, "num_cells": [5], "activate_last_layer": True,
        "norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": n} for n in (5, OUT)],
    },
    "names": {"centralized": False, "share_params": False, "depth": 1, "use_td_params": False},
}  # fmt: skip


def same_networks(theirs: nn.Module, ours: nn.Module, *inputs: Tensor) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(tensors_of(ours), tensors_of(theirs), "parameters")
    found = []
    for net in (ours, theirs):
        value = net(*inputs)
        params = [p for p in net.parameters() if p.requires_grad]
        grads = torch.autograd.grad(value.square().sum(), params)
        found.append(dict(enumerate([value, *grads])))
    assert_same(*found, "output")


@pytest.mark.parametrize("name", MLPS)
@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_networks_of_teams(name: str, shape: tuple) -> None:
    def build(lib: Any) -> nn.Module:
        return lib.modules.MultiAgentMLP(IN, OUT, AGENTS, **MLPS[name])

    theirs, ours = (seeded(build, lib) for lib in libraries())
    x = torch.randn(*shape, AGENTS, IN)
    same_networks(theirs, ours, x)
    same_networks(theirs, ours, x[..., :1], x[..., 1:])


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("state", [(5,), (2, 3), (2, 2, 2)])
def test_mixers(shape: tuple, state: tuple) -> None:
    theirs, ours = (seeded(lib.modules.QMixer, state, 4, AGENTS, "cpu") for lib in libraries())
    q = torch.randn(*shape, AGENTS, 1)
    same_networks(theirs, ours, q, torch.randn(*shape, *state))
    theirs, ours = (lib.modules.VDNMixer(AGENTS, "cpu") for lib in libraries())
    torch.testing.assert_close(ours(q), theirs(q))
    for net in (theirs, ours):
        with pytest.raises(ValueError):
            net(q.squeeze(-1))


def test_sizes_that_are_not_known_yet() -> None:
    """Drawn at the first call, each agent's its own; torchrl's are there before, but empty."""
    for lib in libraries():
        net = lib.modules.MultiAgentMLP(
            None, OUT, AGENTS, centralized=False, share_params=False, depth=0
        )
        out = seeded(net, torch.ones(2, AGENTS, IN))
        assert out.shape == (2, AGENTS, OUT)
        assert net.params["0", "weight"].shape == (AGENTS, OUT, IN)
        assert (out[:, 0] - out[:, 1]).abs().max() > 1e-3


# a Decision Transformer that acts


class Window(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, observation: Tensor, action: Tensor, return_to_go: Tensor) -> Tensor:
        x = torch.cat([observation, action, return_to_go], -1)
        return self.net(x.cumsum(-2))


def acting(lib: Any, keys: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    keys = keys or {}
    read = [keys.get(k, k) for k in ("observation", "action", "return_to_go")]
    actor = lib.modules.ProbabilisticActor(
        TensorDictModule(Window(), read, ["both"]),
        in_keys={"param": "both"},
        out_keys=[keys.get("out_action", "action")],
        distribution_class=lib.modules.TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )
    wrapper = lib.modules.DecisionTransformerInferenceWrapper(actor, **kwargs)
    if keys:
        wrapper.set_tensor_keys(**keys)
    return wrapper


@pytest.mark.parametrize("context", [2, 3, 5, 6, 9])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("keys", [{}, {"observation": "o", "out_action": "move"}])
def test_acting(context: int, timed: bool, keys: dict) -> None:
    theirs, ours = (
        seeded(acting, lib, keys, seed=2) if context == 5
        else seeded(lambda lib=lib: acting(lib, keys, inference_context=context), seed=2)
        for lib in libraries()
    )  # fmt: skip
    assert list(ours.in_keys) == list(theirs.in_keys)
    assert list(ours.out_keys) == list(theirs.out_keys)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    sizes = {keys.get("observation", "observation"): 1, "action": 4, "return_to_go": 1}
    data = {k: torch.randn(2, 6, n, generator=generator) for k, n in sizes.items()}
    out = [net(TensorDict(data, [2, 6] if timed else [2])) for net in (ours, theirs)]
    assert out[0].batch_size == out[1].batch_size
    assert_same(*map(leaves, out), "output")


def test_torchrl_shows_all_actions_in_a_context_of_one_step() -> None:
    data = TensorDict({k: torch.ones(1, 3, 1) for k in ("observation", "return_to_go")}, [1])
    data["action"] = torch.ones(1, 3, 4)
    for lib in libraries():
        shown = acting(lib, inference_context=1).mask_context(data.clone())["action"]
        assert shown.sum() == (8 if lib.name == "torchrl" else 0)
