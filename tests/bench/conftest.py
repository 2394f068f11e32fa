"""Small data and helpers that several test modules share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from tests.bench.trained_runs import Factory


def make_transitions(episodes: int = 12, length: int = 9, obs: int = 3, act: int = 2) -> TensorDict:
    """Synthetic continuous-control data in the loaders' layout: the last episode is truncated and
    its last next observation is unknown."""
    g = torch.Generator().manual_seed(7)
    n = episodes * length
    t = torch.arange(length).repeat(episodes)
    last = t == length - 1
    truncated = torch.zeros(n, dtype=torch.bool)
    truncated[-1] = True
    flags = {"terminated": last & ~truncated, "truncated": truncated, "done": last}
    following = {
        "observation": torch.randn(n, obs, generator=g),
        "reward": torch.randn(n, 1, generator=g),
        **{k: v.unsqueeze(-1) for k, v in flags.items()},
    }
    return TensorDict(
        {
            "observation": torch.randn(n, obs, generator=g),
            "action": torch.rand(n, act, generator=g) * 1.8 - 0.9,
            "next": following,
            "episode": torch.arange(episodes).repeat_interleave(length),
            "t": t,
            "valid_next": ~truncated,
        },
        [n],
    )


def numbered(dataset: SimpleNamespace) -> SimpleNamespace:
    """The same data with three discrete actions."""
    transitions = dataset.transitions.clone()
    actions = (transitions["action"][:, 0] * 1.6).round().long() + 1
    facts = {"transitions": transitions.set("action", actions), "discrete": True, "n_actions": 3}
    return SimpleNamespace(**{**vars(dataset), **facts})


@pytest.fixture
def dataset() -> SimpleNamespace:
    """What the engine reads of a Dataset, around :func:`make_transitions`."""
    return SimpleNamespace(
        name="synthetic",
        transitions=make_transitions(),
        discrete=False,
        action_low=-torch.ones(2),
        action_high=torch.ones(2),
        horizon=9,
        env_id=None,
        unit="return",
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Small finished runs by algorithm, each made by the first test that asks for it."""
    return Factory(tmp_path_factory.mktemp("trained"))
