"""AWACLoss against loops and finite differences."""

import math

import pytest
import torch

from rlobj import LossModule
from tests.rlobj import cases
from tests.rlobj.cases import (
    assert_close,
    draw_action,
    gaussian,
    linear,
    numbers,
    rows,
    squashed_log_density,
    taped,
    unsquash,
)

GAMMA, LAMBDA, CAP = 0.9, 0.5, 3.0


def built(**kwargs: object) -> LossModule:
    settings = {"temperature": LAMBDA, "max_weight": CAP, **kwargs}
    return cases.build("awac", **settings).make_value_estimator(gamma=GAMMA)


def test_actor_by_loop() -> None:
    loss, data, eps = built(reduction="none"), cases.batch(n=24), 0.5 * torch.randn(24, cases.ACT)
    actor = numbers(loss, "actor_network_params")[0]
    critics = numbers(loss, "qvalue_network_params")
    terms, own, capped = [], [], set()
    for row, noise in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s"], noise)
        value = min(linear(q, row["s"], action)[0] for q in critics)
        advantage = min(linear(q, row["s"], row["a"])[0] for q in critics) - value
        weight = min(math.exp(advantage / LAMBDA), CAP)
        capped.add(weight == CAP)
        density = squashed_log_density(unsquash(row["a"]), *gaussian(actor, row["s"]))
        terms.append(-weight * density)
        own.append(log_prob)
    assert capped == {True, False}
    value, info = taped([eps], loss.actor_loss, data)
    assert_close(value, terms)
    assert_close(info["log_prob"], own)


@pytest.mark.parametrize("kind", ["l2", "smooth_l1"])
def test_critic_by_loop(kind: str) -> None:
    loss, data = built(loss_function=kind, reduction="none"), cases.batch(n=24)
    eps = 0.5 * torch.randn(24, cases.ACT)
    actor = numbers(loss, "actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    terms, errors = [], []
    for row, noise in zip(rows(data), eps.tolist(), strict=True):
        action, _ = draw_action(actor, row["s2"], noise)
        after = min(linear(q, row["s2"], action)[0] for q in target)
        goal = row["r"] + (0.0 if row["end"] else GAMMA * after)
        now = [linear(q, row["s"], row["a"])[0] for q in online]
        terms.append(sum(cases.distance(kind, q, goal) for q in now))
        errors.append(max(abs(q - goal) for q in now))
    value, info = taped([eps], loss.qvalue_loss, data)
    assert_close(value, terms)
    assert_close(info["td_error"], errors)


@pytest.mark.parametrize("term", ["actor", "qvalue"])
def test_who_is_trained(term: str) -> None:
    loss, data, eps = built(), cases.batch(), torch.randn(cases.N, cases.ACT)
    value = taped([eps], getattr(loss, f"{term}_loss"), data)[0].sum()
    named = dict(loss.named_parameters())
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    found = {k.split(".")[0] for k, g in zip(named, grads, strict=True) if g is not None}
    assert found == {f"{term}_network_params"}


def test_weight_is_a_constant() -> None:
    """The actor's gradient is the weighted gradient of the log-density."""
    loss, data, eps = built(reduction="none"), cases.batch(), torch.randn(cases.N, cases.ACT)
    params = [v for k, v in loss.named_parameters() if k.startswith("actor")]
    value, info = taped([eps], loss.actor_loss, data)
    grads = torch.autograd.grad(value.sum(), params)
    density = loss.distribution(data).log_prob(data["action"])
    expected = torch.autograd.grad(-(info["weight"] * density).sum(), params)
    for one, other in zip(grads, expected, strict=True):
        assert_close(one, other)


def test_entropy_and_temperature() -> None:
    loss, data = built(), cases.batch()
    tape = cases.tape_for(loss, data)
    own = taped(tape[1:], loss.actor_loss, data)[1]["log_prob"]
    assert_close(taped(tape, loss, data)["entropy"], -own.mean())
    assert_close(
        data["td_error"].squeeze(-1), taped(tape[:1], loss.qvalue_loss, data)[1]["td_error"]
    )
    assert data["td_error"].shape == (cases.N, 1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        cases.CASES["awac"](temperature=0.0)
