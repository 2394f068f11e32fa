"""DDPGLoss against loops written from the paper's equations, and its gradients."""

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from rlobj import DDPGLoss, LossModule
from rlobj.modules import Actor, ValueOperator
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, distance, linear, numbers, rows

GAMMA = 0.9


def built(**kwargs: object) -> LossModule:
    return cases.build("ddpg", **kwargs).make_value_estimator(gamma=GAMMA)


def nets(loss: LossModule) -> tuple:
    names = ("actor", "value", "target_value")
    return tuple(numbers(loss, f"{n}_network_params")[0] for n in names)


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_by_loop(kind: str) -> None:
    loss, each = (built(loss_function=kind, reduction=r) for r in ("mean", "none"))
    data = cases.batch(n=12)
    actor, critic, target = nets(loss)
    values, goals, errors, climbs = [], [], [], []
    for row in rows(data):
        after = linear(target, row["s2"], linear(actor, row["s2"]))[0]
        goals.append(row["r"] + (0.0 if row["end"] else GAMMA * after))
        values.append(linear(critic, row["s"], row["a"])[0])
        errors.append(distance(kind, values[-1], goals[-1]))
        climbs.append(-linear(critic, row["s"], linear(actor, row["s"]))[0])
    value, info = each.loss_value(data)
    assert_close(value, errors)
    assert_close(info["pred_value"], values)
    assert not info["pred_value"].requires_grad
    assert_close(info["target_value"], goals)
    assert_close(info["pred_value_max"], max(values))
    assert_close(info["target_value_max"], max(goals))
    assert_close(each.loss_actor(data)[0], climbs)
    out = loss(data)
    assert_close(out["loss_value"], sum(errors) / 12)
    assert_close(out["loss_actor"], sum(climbs) / 12)
    squares = [(v - g) ** 2 for v, g in zip(values, goals, strict=True)]
    assert_close(data["td_error"], squares)


def test_delayed_actor_acts_in_the_target() -> None:
    loss, data = built(delay_actor=True), cases.batch()
    actor = numbers(loss, "target_actor_network_params")[0]
    critic, row = nets(loss)[2], rows(data)[0]
    goal = row["r"] + GAMMA * linear(critic, row["s2"], linear(actor, row["s2"]))[0]
    assert_close(loss.loss_value(data)[1]["target_value"][0], goal)


def test_actions_below_next_do_not_count() -> None:
    loss, data = built(reduction="none"), cases.batch()
    expected = loss.loss_value(data)[0]
    data["next", "action"] = torch.full_like(data["action"], 7.0)
    assert_close(loss.loss_value(data)[0], expected.detach())


@pytest.mark.parametrize("term", ["actor", "value"])
def test_gradients(term: str) -> None:
    loss, data = built(delay_actor=True), cases.batch()

    def compute() -> Tensor:
        return getattr(loss, f"loss_{term}")(data)[0]

    cases.check_gradient(loss, compute, f"{term}_network_params")


def test_shared_parameters() -> None:
    """With separate_losses the critic's loss leaves what it shares with the actor alone."""
    actor, critic = cases.deterministic(), cases.critic()
    critic.shared = actor.module
    loss = DDPGLoss(actor, critic, separate_losses=True)
    own = {k for k, _ in loss.named_parameters()}
    assert not any(k.startswith("value_network_params.shared") for k in own)
    assert any(k.startswith("value_network_params.module") for k in own)


def test_each_target_network_has_its_own_delayed_trunk() -> None:
    trunk = TensorDictModule(nn.Linear(cases.OBS, cases.OBS), ["observation"], ["hidden"])
    actor = Actor(nn.Linear(cases.OBS, cases.ACT), in_keys=["hidden"])
    critic = ValueOperator(cases.Critic(), in_keys=["hidden", "action"])
    networks = TensorDictSequential(trunk, actor), TensorDictSequential(trunk, critic)
    loss = cases.perturb(DDPGLoss(*networks, delay_actor=True)).make_value_estimator(gamma=GAMMA)
    data = cases.batch()
    (act0, act1), (value0, value1) = (
        [numbers(loss, f"target_{net}_network_params.module.{i}")[0] for i in (0, 1)]
        for net in ("actor", "value")
    )
    goals = []
    for row in rows(data):
        action = linear(act1, linear(act0, row["s2"]))
        after = linear(value1, linear(value0, row["s2"]), action)[0]
        goals.append(row["r"] + (0.0 if row["end"] else GAMMA * after))
    assert_close(loss.loss_value(data)[1]["target_value"], goals)
