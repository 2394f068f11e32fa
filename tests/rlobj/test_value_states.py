"""What value networks are asked about s': where its entries are missing or NaN, and in one call
for s and s' of rollouts with several axes."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rlobj.modules import ValueOperator
from rlobj.value import GAE, TD0Estimator
from rlobj.value.networks import standardize
from tests.rlobj.cases import OBS, assert_close
from tests.rlobj.returns import network, rollout

GAMMA, LMBDA = 0.9, 0.8


def gae(**kwargs: object) -> GAE:
    return GAE(**{"gamma": GAMMA, "lmbda": LMBDA, "value_network": network(), **kwargs})


class OfTask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBS, 1)

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        return self.linear(observation) * task


def test_entries_that_the_next_state_lacks_are_the_states() -> None:
    data, net = rollout(), ValueOperator(OfTask(), in_keys=["observation", "task"])
    data["task"] = torch.arange(15).reshape(3, 5, 1)
    found = gae(value_network=net)(data.clone())["next", "state_value"]
    assert_close(found, net.module(data["next", "observation"], data["task"]).detach())
    data["next", "task"] = 2 * data["task"]
    found = gae(value_network=net)(data.clone())["next", "state_value"]
    assert_close(found, net.module(data["next", "observation"], 2 * data["task"]).detach())


def test_entries_of_the_next_state_alone() -> None:
    """An estimator that asks about s' alone needs nothing of s."""
    data, net = rollout(), ValueOperator(OfTask(), in_keys=["observation", "task"])
    data["next", "task"] = torch.rand(3, 5, 1)
    after = net.module(data["next", "observation"], data["next", "task"]).detach()
    estimator = TD0Estimator(gamma=GAMMA, value_network=net)
    expected = TD0Estimator(gamma=GAMMA, value_network=None).value_estimate(data, next_value=after)
    assert_close(estimator.value_estimate(data), expected)


def test_missing_observations_after_an_end() -> None:
    """Where s' holds NaN, s stands in, entry by entry."""
    data, net = rollout(), network()
    hole = data["next", "done"].expand(3, 5, OBS).clone()
    hole[..., 0] = False
    whole = torch.where(hole, data["observation"], data["next", "observation"])
    data["next", "observation"][hole] = math.nan
    found = gae(value_network=net)(data)["next", "state_value"]
    assert_close(found, net.module(whole).detach())
    assert hole.any()


def turned(data: TensorDict, time: int) -> TensorDict:
    """The last axis at ``time``."""
    axes = list(range(data.ndim - 1))
    return data.permute(*axes[:time], data.ndim - 1, *axes[time:]).clone()


@pytest.mark.parametrize("time", [0, 1])
def test_one_call_with_time_far_from_the_end(time: int) -> None:
    data, net = rollout((2, 3, 6)), network()
    settings = {"value_network": net, "shifted": True, "shifted_budget": 5}
    expected = gae(**settings)(data.clone())
    found = gae(**settings, time_dim=time)(turned(data, time))
    assert expected["shifted_valid"].all()
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        assert_close(found[key], turned(expected.select(key), time)[key])


def test_one_end_of_several_ends_a_step() -> None:
    """Flags of two parts of a state: a step is truncated where either is."""
    data, net = rollout(seed=2), ValueOperator(nn.Linear(OBS, 2))
    for key in ("reward", "done", "terminated"):
        data["next", key] = data["next", key].expand(3, 5, 2).clone()
    data["next", "done"][..., 1] = data["next", "terminated"][..., 1]
    expected = gae(value_network=net)(data.clone())
    found = gae(value_network=net, shifted=True, shifted_budget=5)(data.clone())
    assert (data["next", "done"] != data["next", "done"].flip(-1)).any()
    for key in ("advantage", "value_target", "state_value"):
        assert_close(found[key], expected[key])


def test_steps_without_a_slot_have_no_values() -> None:
    found = gae(shifted=True)(rollout((6, 9), seed=5))
    left_out = ~found["shifted_valid"]
    assert left_out.any()
    for key in ("state_value", ("next", "state_value")):
        assert_close(found[key][left_out], torch.zeros(int(left_out.sum()), 1))


def test_nothing_valid_is_zero() -> None:
    none = torch.zeros(3, dtype=torch.bool)
    assert_close(standardize(torch.randn(3), 1e-4, valid=none), [0.0, 0.0, 0.0])


def test_hyper_parameters_are_constants() -> None:
    gamma = torch.tensor(GAMMA, requires_grad=True)
    assert not TD0Estimator(gamma=gamma, value_network=None).gamma.requires_grad


def test_next_values_of_the_network_are_constants() -> None:
    """Given ones are not; parameters that are passed move no target either."""
    data, estimator = rollout(), gae(differentiable=True)
    data["next", "observation"].requires_grad_()
    assert not estimator.value_estimate(data).requires_grad
    given = torch.randn(3, 5, 1, requires_grad=True)
    value = estimator.value_estimate(data, next_value=given)
    assert torch.autograd.grad(value.sum(), given)[0].abs().max() > 0


def test_one_call_holds_given_parameters() -> None:
    net = network()
    params = TensorDict.from_module(net)
    found = gae(value_network=net, shifted=True, differentiable=True)(rollout(), params=params)
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        assert not found[key].requires_grad
