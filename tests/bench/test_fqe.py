"""Fitted Q evaluation on decision processes whose values are known, and what is made of it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from bench.errors import ConfigError
from bench.report import offline
from bench.report.offline import Estimate, Offline
from bench.trained.fqe import Settings, estimate

FAST = Settings(steps=1500, hidden=(32,), batch_size=64, lr=3e-3, tau=0.05, gamma=0.5)


class Constant:
    """A policy that does the same everywhere, ``[1, n, 1]`` for ``[1, n, obs]``."""

    def __init__(self, action: float) -> None:
        self.action = action

    def reset(self, seeds: int, episodes: int) -> None: ...

    def act(self, observation: Tensor) -> Tensor:
        return torch.full((*observation.shape[:2], 1), self.action)


def policy(action: float, discrete: bool = False, carried: int = 0) -> Any:
    return SimpleNamespace(
        name=f"always {action}",
        recipe=SimpleNamespace(discrete=discrete, sequence=False),
        agent=SimpleNamespace(carried=carried),
        problem=SimpleNamespace(n_actions=2),
        policy=lambda episodes, alone: Constant(action),
    )


def chain(n: int = 400, *, endless: bool = False, discrete: bool = False) -> Any:
    """Two steps: at the first nothing is earned, at the second the action. ``endless``: the second
    leads to itself, and what looks like an end is a time limit."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(n) % 2
    where = t.float().unsqueeze(1)
    if discrete:
        action = torch.randint(2, (n,), generator=generator)
        paid = action.float().unsqueeze(1)
    else:
        action = 2 * torch.rand(n, 1, generator=generator) - 1
        paid = action
    last = (t == 1).unsqueeze(1)
    flags = {"done": last, "terminated": last & (not endless), "truncated": last & endless}
    after = {"observation": torch.ones(n, 1), "reward": paid * where, **flags}
    columns = {
        "observation": where, "action": action, "next": after, "t": t,
        "valid_next": torch.ones(n, dtype=torch.bool),
    }  # fmt: skip
    return SimpleNamespace(name="chain", transitions=TensorDict(columns, [n]))


def test_the_value_of_a_policy_is_not_that_of_the_data() -> None:
    """0 + gamma * a, for three policies in one program."""
    found = estimate([policy(a) for a in (1.0, -1.0, 0.0)], chain(), FAST)
    assert found == pytest.approx([0.5, -0.5, 0.0], abs=0.03)


def test_a_time_limit_is_no_end() -> None:
    """gamma * a * (1 + gamma + ...) = a."""
    found = estimate([policy(1.0), policy(-0.5)], chain(endless=True), FAST)
    assert found == pytest.approx([1.0, -0.5], abs=0.05)


def test_discrete_actions() -> None:
    found = estimate([policy(a, discrete=True) for a in (0, 1)], chain(discrete=True), FAST)
    assert found == pytest.approx([0.0, 0.5], abs=0.03)


def test_a_policy_with_a_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="its value is no function of the state"):
        estimate([policy(1.0, carried=3)], chain(), FAST)


def made(scores: list[float], estimates: list[float], dataset: str = "d") -> Offline:
    pairs = enumerate(zip(scores, estimates, strict=True))
    return Offline(
        tuple(
            Estimate(dataset, "iql", "I<Q>L", seed, "last", 9, guess, score, "normalized")
            for seed, (score, guess) in pairs
        ),
        ("left out: DT on d",),
    )


def test_what_choosing_is_worth() -> None:
    """The largest estimate is the second policy's: 40 of 70, against a mean of 40."""
    (found,) = offline.selections(made([10, 40, 70], [1.0, 3.0, 2.0]))
    assert (found.regret, found.chance, found.policies) == (30, 30, 3)
    assert found.spearman == pytest.approx(0.5)
    assert (found.chosen.seed, found.best.seed) == (1, 2)
    assert offline.selections(made([1.0], [1.0])) == []


def test_an_estimate_that_diverged_is_never_chosen() -> None:
    (found,) = offline.selections(made([70, 40, 10], [math.nan, 2.0, 1.0]))
    assert found.chosen.seed == 1 and found.regret == 30
    assert found.spearman == pytest.approx(-0.5)


def test_ranks() -> None:
    """scipy.stats.spearmanr([1, 2, 2, 4], [3, 1, 4, 5]) is 0.6324555320336759."""
    assert offline.spearman([1, 2, 2, 4], [3, 1, 4, 5]) == pytest.approx(0.6324555320336759)
    assert math.isnan(offline.spearman([1, 1, 1], [1, 2, 3]))


def test_texts_and_figure(tmp_path: Path) -> None:
    """Names are escaped, what is left out is named, and there is a figure."""
    found = made([10, 40, 70], [1.0, math.nan, 2.0])
    assert "I&lt;Q&gt;L" in offline.page_section(found) and "<Q>" not in offline.page_section(found)
    for text in (offline.plain(found), offline.markdown(found), offline.page_section(found)):
        assert "DT on d" in text and "0.0" in text
    assert len(offline.frame(found)) == 3
    offline.draw_estimates(found.estimates).savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
