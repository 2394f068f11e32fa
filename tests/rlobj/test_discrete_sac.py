"""DiscreteSACLoss against loops over actions."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlobj import DiscreteSACLoss, LossModule
from rlobj.specs import OneHot
from tests.rlobj import cases, discrete
from tests.rlobj.cases import ACTIONS, assert_close, distance, linear, numbers

GAMMA = 0.9


def built(**kwargs: object) -> LossModule:
    return cases.build("discrete_sac", **kwargs).make_value_estimator(gamma=GAMMA)


def batch(n: int = 24) -> TensorDict:
    data = cases.batch(n=n)
    chosen = torch.arange(n) % ACTIONS
    data["action"] = torch.nn.functional.one_hot(chosen, ACTIONS)
    return data


def policy(net: tuple[list, list], observation: list[float]) -> list[float]:
    weights = [math.exp(x) for x in linear(net, observation)]
    return [w / sum(weights) for w in weights]


def least(nets: list, observation: list[float]) -> list[float]:
    return [min(q) for q in zip(*(linear(net, observation) for net in nets), strict=True)]


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_critic_by_loop(kind: str) -> None:
    loss, data = built(loss_function=kind, reduction="none"), batch()
    actor = numbers(loss, "actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    alpha, terms, errors = math.exp(loss.log_alpha.item()), [], []
    for i, row in enumerate(cases.rows(data)):
        probs, q = policy(actor, row["s2"]), least(target, row["s2"])
        after = sum(p * (v - alpha * math.log(p)) for p, v in zip(probs, q, strict=True))
        goal = row["r"] + (0.0 if row["end"] else GAMMA * after)
        now = [linear(net, row["s"])[i % ACTIONS] for net in online]
        terms.append(sum(distance(kind, v, goal) for v in now))
        errors.append(max(abs(v - goal) for v in now))
    value, info = loss.qvalue_loss(data)
    assert_close(value, terms)
    assert_close(info["td_error"], errors)


def test_actor_and_temperature_by_loop() -> None:
    loss, each, data = built(), built(reduction="none"), batch()
    actor, critics = (
        numbers(loss, "actor_network_params")[0],
        numbers(loss, "qvalue_network_params"),
    )
    alpha, terms, log_probs = math.exp(loss.log_alpha.item()), [], []
    for row in cases.rows(data):
        probs, q = policy(actor, row["s"]), least(critics, row["s"])
        terms.append(sum(p * (alpha * math.log(p) - v) for p, v in zip(probs, q, strict=True)))
        log_probs.append(sum(p * math.log(p) for p in probs))
    value, info = each.actor_loss(data)
    assert_close(value, terms)
    assert_close(info["log_prob"], log_probs)
    out, mean = loss(data), sum(log_probs) / len(log_probs)
    assert_close(out["entropy"], -mean)
    goal = 0.98 * math.log(ACTIONS)
    assert_close(out["loss_alpha"], -loss.log_alpha.item() * (mean + goal))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_categorical_actions(shape: tuple) -> None:
    loss, data = built(reduction="none"), batch()
    expected = loss.qvalue_loss(data)[0]
    other = built(action_space="categorical", reduction="none")
    data["action"] = data["action"].argmax(-1).reshape(24, *shape)
    assert_close(other.qvalue_loss(data)[0], expected.detach())


@pytest.mark.parametrize("term", ["actor", "qvalue"])
def test_gradients(term: str) -> None:
    loss, data = built(), batch(4)

    def compute() -> Tensor:
        return getattr(loss, f"{term}_loss")(data)[0]

    cases.check_gradient(loss, compute, f"{term}_network_params")


def test_impossible_action_has_no_say() -> None:
    """An action of probability 0 neither counts nor makes anything NaN."""
    loss, data = built(reduction="none"), batch()
    loss.actor_network_params["module", "0", "module", "bias"].data[1] = -math.inf
    value, info = loss.actor_loss(data)
    alpha, q = loss.alpha, loss._q_all(data).min(0).values[:, [0, 2]]
    log_prob = loss.distribution(data).logits[:, [0, 2]].log_softmax(-1)
    assert_close(value, (log_prob.exp() * (alpha * log_prob - q)).sum(-1).detach())
    assert info["log_prob"].isfinite().all()
    assert loss.qvalue_loss(data)[0].isfinite().all()
    (grad,) = torch.autograd.grad(
        value.sum(), loss.actor_network_params["module", "0", "module", "weight"]
    )
    assert grad.isfinite().all()


def test_target_entropy() -> None:
    assert_close(built().target_entropy, 0.98 * math.log(ACTIONS))
    half = built(target_entropy_weight=0.5)
    assert_close(half.target_entropy, 0.5 * math.log(ACTIONS))
    assert built(target_entropy=0.25).target_entropy.item() == 0.25
    with pytest.raises(ValueError, match="needs num_actions"):
        DiscreteSACLoss(cases.categorical(), cases.action_values(), action_space="one-hot")
    with pytest.raises(ValueError, match="give 'one_hot' or 'categorical'"):
        built(action_space="binary")


def test_action_space() -> None:
    """The policy's spec says what is not said; a spec also knows the number of actions."""
    networks = discrete.policy("categorical"), cases.action_values()
    told = DiscreteSACLoss(*networks)
    assert told.action_space == "categorical"
    assert_close(told.target_entropy, 0.98 * math.log(discrete.ACTIONS))
    assert DiscreteSACLoss(*networks, action_space=OneHot(3)).action_space == "one_hot"
    networks[0].spec = None
    with pytest.warns(UserWarning, match="DiscreteSACLoss: action_space is unknown, one-hot"):
        assert DiscreteSACLoss(*networks, num_actions=5).action_space == "one_hot"


def test_skipped_states_may_hold_anything() -> None:
    """The state after the end may be NaN; a truncated step still counts."""
    plain, skips = (built(reduction="none", skip_done_states=s) for s in (False, True))
    data = batch()
    expected = plain.qvalue_loss(data)[0].detach()
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = math.nan
    assert not plain.qvalue_loss(data)[0].isfinite().all()
    assert_close(skips.qvalue_loss(data)[0], expected)
