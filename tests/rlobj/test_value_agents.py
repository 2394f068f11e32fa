"""Standardisation by agent, and the least spread that rewards are divided by."""

import statistics

import pytest
import torch
from tensordict import TensorDict

from rlobj.value import MultiAgentGAE, TD0Estimator, TD1Estimator, TDLambdaEstimator
from rlobj.value import functional as F
from tests.rlobj.cases import assert_close

GAMMA, LMBDA, SHAPE, AGENTS = 0.9, 0.8, (4, 6), 3


def team() -> TensorDict:
    """Values and rewards of each agent, on scales of their own."""
    scales = torch.tensor([1.0, 5.0, 0.1]).unsqueeze(-1)
    flags = torch.rand(2, *SHAPE, 1) < 0.2
    data = {
        "state_value": torch.randn(*SHAPE, AGENTS, 1) * scales,
        ("next", "state_value"): torch.randn(*SHAPE, AGENTS, 1) * scales + 3.0,
        ("next", "reward"): torch.randn(*SHAPE, 1),
        ("next", "done"): flags.any(0),
        ("next", "terminated"): flags[0],
        "task": torch.tensor([1, 0, 0, 1]).unsqueeze(-1).expand(SHAPE),
    }
    return TensorDict(data, SHAPE)


@pytest.mark.parametrize("agent_dim", [-2, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_agent_is_standardised_by_itself(agent_dim: int, grouped: bool) -> None:
    data, settings = team(), {"gamma": GAMMA, "lmbda": LMBDA, "agent_dim": agent_dim}
    raw = MultiAgentGAE(value_network=None, **settings)(data.clone())["advantage"]
    settings["group_key"] = "task" if grouped else None
    found = MultiAgentGAE(value_network=None, average_gae=True, **settings)(data)["advantage"]
    for rows in [[0, 3], [1, 2]] if grouped else [[0, 1, 2, 3]]:
        for agent in range(AGENTS):
            own = raw[rows, :, agent].flatten()
            mean, sd = statistics.fmean(own.tolist()), statistics.stdev(own.tolist())
            assert_close(found[rows, :, agent].flatten(), (own - mean) / sd)


def test_agents_along_another_axis() -> None:
    """The agents' axis may be any after the batch's: here two numbers per agent follow it."""
    data = team()
    for key in ("state_value", ("next", "state_value")):
        data[key] = torch.randn(*SHAPE, AGENTS, 2, 2)
    for key in ("reward", "done", "terminated"):
        data["next", key] = data["next", key].reshape(*SHAPE, 1, 1, 1).expand(*SHAPE, AGENTS, 2, 2)
    settings = {"gamma": GAMMA, "lmbda": LMBDA, "agent_dim": 2}
    raw = MultiAgentGAE(value_network=None, **settings)(data.clone())["advantage"]
    found = MultiAgentGAE(value_network=None, average_gae=True, **settings)(data)["advantage"]
    for agent in range(AGENTS):
        own = raw[:, :, agent].flatten()
        expected = (own - own.mean()) / own.std()
        assert_close(found[:, :, agent].flatten(), expected)


@pytest.mark.parametrize(
    ("estimator", "eps"),
    [
        (lambda **k: TD0Estimator(gamma=0.0, **k), 1e-5),
        (lambda **k: TD1Estimator(gamma=0.0, **k), 1e-5),
        (lambda **k: TDLambdaEstimator(gamma=0.0, lmbda=0.5, **k), 1e-4),
    ],
)
def test_least_spread_of_rewards(estimator: object, eps: float) -> None:
    """Rewards 0 and 2e-6 lie 1e-6 from their mean; upstream's least standard deviations."""
    flag = torch.zeros(2, 1, dtype=torch.bool)
    after = {"reward": torch.tensor([[0.0], [2e-6]]), "done": flag, "terminated": flag}
    data = TensorDict({"next": after}, [2])
    made = estimator(value_network=None, average_rewards=True)
    found = made.value_estimate(data, next_value=torch.ones(2, 1))
    assert_close(found, [[-1e-6 / eps], [1e-6 / eps]])


def test_gamma_of_two_steps() -> None:
    """Along the last axis, for all rows alike; and two numbers are as many as steps."""
    reward, value = torch.randn(3, 2), torch.randn(3, 2)
    flag = torch.zeros(3, 2, dtype=torch.bool)
    gamma = torch.tensor([0.9, 0.5])
    last = reward[:, 1] + 0.5 * value[:, 1]
    first = reward[:, 0] + 0.9 * (0.4 * last + 0.6 * value[:, 0])
    batch = (value, reward, flag, flag)
    found = F.td_lambda_return_estimate(gamma, 0.4, *batch, time_dim=-1)
    assert_close(found, torch.stack([first, last], -1))
    kept = F.td_lambda_return_estimate(gamma, 0.4, *batch, rolling_gamma=False, time_dim=-1)
    again = reward[:, 0] + 0.9 * (0.4 * (reward[:, 1] + 0.9 * value[:, 1]) + 0.6 * value[:, 0])
    assert_close(kept, torch.stack([again, last], -1))
