"""ReBRACLoss against loops: the two penalties, the scale of Q, and schedules."""

import pytest
import torch
from torch import Tensor

from rlobj import LossModule
from tests.rlobj import cases
from tests.rlobj.cases import HIGH, LOW, assert_close, batch_for, linear, numbers, rows, taped

GAMMA, ACTOR, CRITIC = 0.9, 0.3, 0.7


def built(**kwargs: object) -> LossModule:
    coefficients = {"actor_bc_coeff": ACTOR, "critic_bc_coeff": CRITIC}
    loss = cases.build("rebrac", **{**coefficients, **kwargs})
    return loss.make_value_estimator(gamma=GAMMA)


def square(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def test_critic_by_loop() -> None:
    loss, data, eps = built(reduction="none"), batch_for("rebrac"), torch.randn(cases.N, cases.ACT)
    actor = numbers(loss, "target_actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    losses = []
    for row, noise, kept in zip(
        rows(data), eps.tolist(), data["next", "action"].tolist(), strict=True
    ):
        shifts = [min(max(0.2 * e, -0.5), 0.5) for e in noise]
        box = zip(linear(actor, row["s2"]), shifts, LOW, HIGH, strict=True)
        action = [min(max(m + e, low), high) for m, e, low, high in box]
        after = min(linear(q, row["s2"], action)[0] for q in target)
        after -= CRITIC * square(action, kept)
        goal = row["r"] + (0.0 if row["end"] else GAMMA * after)
        losses.append(sum((linear(q, row["s"], row["a"])[0] - goal) ** 2 for q in online))
    assert_close(taped([eps], loss.qvalue_loss, data)[0], losses)


@pytest.mark.parametrize("normalize_q", [True, False])
def test_actor_by_loop(normalize_q: bool) -> None:
    loss, data = built(normalize_q=normalize_q, reduction="none"), batch_for("rebrac")
    q = loss.actor_loss(data)[1]["state_action_value_actor"].min(0).values
    loss.qvalue_network_params["module", "linear", "bias"].data.sub_(q.median())
    actor, critics = (
        numbers(loss, "actor_network_params")[0],
        numbers(loss, "qvalue_network_params"),
    )
    actions = [linear(actor, row["s"]) for row in rows(data)]
    pairs = list(zip(rows(data), actions, strict=True))
    least = [min(linear(q, row["s"], a)[0] for q in critics) for row, a in pairs]
    assert min(least) < 0 < max(least)
    gaps = [square(a, row["a"]) for row, a in pairs]
    lmbd = cases.N / sum(abs(q) for q in least) if normalize_q else 1.0
    value, info = loss.actor_loss(data)
    assert_close(value, [ACTOR * g - lmbd * q for g, q in zip(gaps, least, strict=True)])
    assert_close(info["lmbd"], lmbd)
    assert_close(info["bc_loss"], sum(gaps) / cases.N)


def test_gradients() -> None:
    data, tape = batch_for("rebrac"), [0.3 * torch.randn(cases.N, cases.ACT)]
    loss = built(normalize_q=False)

    def actor() -> Tensor:
        return loss.actor_loss(data)[0]

    def critic() -> Tensor:
        return taped(tape, loss.qvalue_loss, data)[0]

    cases.check_gradient(loss, actor, "actor_network_params", "actor_bc_coeff")
    cases.check_gradient(loss, critic, "qvalue_network_params")


def test_scale_of_q_is_a_constant() -> None:
    """The gradient is that of Q over a fixed scale."""
    loss, data = built(actor_bc_coeff=0.0), batch_for("rebrac")
    weight = loss.actor_network_params["module", "weight"]
    value, info = loss.actor_loss(data)
    (grad,) = torch.autograd.grad(value.sum(), weight)
    plain = built(actor_bc_coeff=0.0, normalize_q=False)
    (raw,) = torch.autograd.grad(
        plain.actor_loss(data)[0].sum(), plain.actor_network_params["module", "weight"]
    )
    assert_close(grad, info["lmbd"] * raw)


def test_coefficients_can_be_scheduled() -> None:
    loss, data = built(), batch_for("rebrac")
    held = loss.actor_bc_coeff
    loss.actor_bc_coeff = 0.0
    loss.critic_bc_coeff = 0.0
    assert loss.actor_bc_coeff is held
    tape = cases.tape_for(loss, data)
    other = built(actor_bc_coeff=0.0, critic_bc_coeff=0.0)
    for key in ("loss_actor", "loss_qvalue"):
        assert_close(taped(tape, loss, data)[key], taped(tape, other, data)[key].detach())
