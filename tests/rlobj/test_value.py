"""One-step value targets and their estimator."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rlobj import ValueEstimators, default_value_kwargs
from rlobj.modules import ValueOperator
from rlobj.utils import value_type_of
from rlobj.value import ESTIMATORS, TD0Estimator
from rlobj.value.functional import td0_advantage_estimate, td0_return_estimate
from tests.rlobj import cases
from tests.rlobj.cases import assert_close

REWARD, AFTER, NOW = torch.tensor(
    [[[1.0], [2.0], [3.0]], [[10.0], [20.0], [30.0]], [[4.0], [5.0], [6.0]]], dtype=torch.float64
)
TERMINATED = torch.tensor([[False], [True], [False]])
DONE = torch.tensor([[False], [True], [True]])
TARGET = [[1 + 9.0], [2.0], [3 + 27.0]]  # gamma = 0.9; the third is truncated: it bootstraps


def test_target_by_hand() -> None:
    assert_close(td0_return_estimate(0.9, AFTER, REWARD, TERMINATED, done=DONE), TARGET)
    assert_close(td0_return_estimate(0.9, AFTER, REWARD, TERMINATED.double()), TARGET)
    assert_close(td0_return_estimate(0.9, AFTER, REWARD, done=DONE), [[10.0], [2.0], [3.0]])


def test_advantage_by_hand() -> None:
    advantage = td0_advantage_estimate(0.9, NOW, AFTER, REWARD, DONE, TERMINATED)
    assert_close(advantage, [[6.0], [-3.0], [24.0]])
    assert_close(td0_advantage_estimate(0.9, NOW, AFTER, REWARD, DONE), [[6.0], [-3.0], [-3.0]])


def test_target_needs_a_flag() -> None:
    with pytest.raises(ValueError, match="needs terminated"):
        td0_return_estimate(0.9, AFTER, REWARD)


@pytest.mark.parametrize("flat", ["reward", "terminated", "value"])
def test_target_refuses_shapes_that_would_broadcast(flat: str) -> None:
    """[n] beside [n, 1] would become [n, n]."""
    given = {"value": AFTER, "reward": REWARD, "terminated": TERMINATED}
    given[flat] = given[flat].squeeze(-1)
    with pytest.raises(RuntimeError, match=r"must share one shape, got .*\(3,\)"):
        td0_return_estimate(0.9, *given.values())


def test_loss_refuses_rewards_without_feature_axis() -> None:
    """With as many transitions as critics the target would broadcast without a word."""
    loss, data = cases.build("td3_bc"), cases.batch(n=2)
    data["next", "reward"] = data["next", "reward"].squeeze(-1)
    with pytest.raises(RuntimeError, match="must share one shape"):
        loss(data)


def transitions() -> TensorDict:
    after = {"reward": REWARD, "terminated": TERMINATED, "done": DONE, "observation": AFTER}
    return TensorDict({"observation": NOW, "next": TensorDict(after, [3])}, [3])


def test_estimator() -> None:
    data = transitions()
    assert_close(
        TD0Estimator(gamma=0.9, value_network=None).value_estimate(data, next_value=AFTER), TARGET
    )
    double = nn.Linear(1, 1, bias=False)
    double.weight.data.fill_(2.0)
    estimator = TD0Estimator(gamma=0.9, value_network=ValueOperator(double))
    assert_close(estimator.value_estimate(data), [[1 + 18.0], [2.0], [3 + 54.0]])
    assert "state_value" not in data["next"]


def test_estimator_over_several_steps() -> None:
    data = transitions().set("steps_to_next_obs", torch.tensor([[2], [1], [3]]))
    found = TD0Estimator(gamma=0.5, value_network=None).value_estimate(data, next_value=AFTER)
    assert_close(found, [[1 + 10 / 4], [2.0], [3 + 30 / 8]])


def test_estimator_without_values() -> None:
    with pytest.raises(ValueError, match="give next_value, or build"):
        TD0Estimator(gamma=0.9, value_network=None).value_estimate(transitions())


def test_estimator_keys() -> None:
    data, estimator = transitions(), TD0Estimator(gamma=0.9, value_network=None)
    data["next", "pay"] = data["next"].pop("reward")
    estimator.set_keys(reward="pay")
    assert_close(estimator.value_estimate(data, next_value=AFTER), TARGET)
    assert estimator.in_keys == []  # a call by keywords needs a network that names its inputs
    with pytest.raises(KeyError, match="'rewards' is not a key of TD0Estimator"):
        estimator.set_keys(rewards="pay")


def test_estimator_can_be_shown() -> None:
    """A module's repr lists its keys; a loss that holds one is printed with it."""
    net = ValueOperator(nn.Linear(1, 1))
    estimator = TD0Estimator(gamma=0.9, value_network=net)
    assert set(estimator.in_keys) == {
        "observation",
        *(("next", k) for k in ("observation", "reward", "done", "terminated")),
    }
    assert estimator.out_keys == ["advantage", "value_target"]
    loss = cases.build("sac")
    loss(cases.batch())
    assert "TD0Estimator" in repr(loss)


def test_names() -> None:
    assert value_type_of("TD0") is value_type_of(ValueEstimators.TD0) is ValueEstimators.TD0
    with pytest.raises(KeyError):
        value_type_of("td")
    assert default_value_kwargs(ValueEstimators.TD0) == {"gamma": 0.99, "differentiable": True}
    assert set(ESTIMATORS) == set(ValueEstimators)


def test_losses_take_an_estimator_by_name() -> None:
    loss, data = cases.build("iql", reduction="none"), cases.batch()
    with pytest.raises(KeyError):
        loss.make_value_estimator("sarsa")
    assert loss.make_value_estimator("td0", gamma=0.0) is loss
    far = loss.qvalue_loss(data)[0]
    data["next", "observation"] += 1
    assert_close(loss.qvalue_loss(data)[0], far)  # gamma = 0: the next value does not count
    assert "_value_estimator.gamma" in loss.state_dict()
    with pytest.raises(NotImplementedError, match="BCLoss bootstraps no value"):
        cases.build("bc").make_value_estimator()
