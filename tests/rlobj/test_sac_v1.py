"""The first version of SACLoss (with V) against loops, and states after the end."""

import math

import pytest
import torch
from torch import Tensor

from rlobj import LossModule
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, distance, draw_action, linear, numbers, rows, taped

GAMMA = 0.9


def built(name: str = "sac_v1", **kwargs: object) -> LossModule:
    return cases.build(name, **kwargs).make_value_estimator(gamma=GAMMA)


@pytest.mark.parametrize("delay", [True, False])
def test_value_by_loop(delay: bool) -> None:
    """Without delayed critics this is eq. 5 of the paper."""
    loss, data = built(delay_qvalue=delay), cases.batch(n=24)
    eps = 0.5 * torch.randn(24, cases.ACT)
    actor = numbers(loss, "actor_network_params")[0]
    critics = numbers(loss, f"{'target_' if delay else ''}qvalue_network_params")
    net, alpha = numbers(loss, "value_network_params")[0], math.exp(loss.log_alpha.item())
    terms, met = [], set()
    for row, e in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s"], e)
        q = [linear(c, row["s"], action)[0] for c in critics]
        met.add(q.index(min(q)))
        goal = min(q) - alpha * log_prob
        terms.append(distance("smooth_l1", linear(net, row["s"])[0], goal))
    assert met == {0, 1}
    assert_close(taped([eps], loss.value_loss, data)[0], terms)


@pytest.mark.parametrize("delay", [True, False])
def test_critic_by_loop(delay: bool) -> None:
    """Every critic sees the whole batch, and the target is V of the next state."""
    loss, data = built(delay_value=delay), cases.batch(n=12)
    net = numbers(loss, f"{'target_' if delay else ''}value_network_params")[0]
    critics, terms, errors = numbers(loss, "qvalue_network_params"), [], []
    for row in rows(data):
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(net, row["s2"])[0])
        now = [linear(c, row["s"], row["a"])[0] for c in critics]
        terms.append(sum(distance("smooth_l1", q, goal) for q in now))
        errors.append(max(abs(q - goal) for q in now))
    value, info = taped([], loss.qvalue_loss, data)
    assert_close(value, terms)
    assert_close(info["td_error"], errors)


@pytest.mark.parametrize("term", ["actor", "qvalue", "value"])
def test_gradients(term: str) -> None:
    loss, data, eps = built(), cases.batch(), torch.randn(cases.N, cases.ACT)
    method = getattr(loss, f"{term}_loss")

    def compute() -> Tensor:
        return taped([eps], method, data)[0]

    cases.check_gradient(loss, compute, f"{term}_network_params")


def test_forward_holds_all_terms() -> None:
    loss, data = built(), cases.batch()
    tape = cases.tape_for(loss, data)  # value, then actor
    out = taped(tape, loss, data)
    assert_close(out["loss_value"], taped(tape[:1], loss.value_loss, data)[0].detach().mean())
    assert_close(out["loss_actor"], taped(tape[1:], loss.actor_loss, data)[0].detach().mean())
    assert_close(out["loss_qvalue"], loss.qvalue_v1_loss(data)[0].detach().mean())


@pytest.mark.parametrize("name", ["sac", "sac_v1"])
def test_skipped_states_may_hold_anything(name: str) -> None:
    """The state after the end may be NaN; a truncated step still counts."""
    plain, skips = built(name), built(name, skip_done_states=True)
    data = cases.batch_for(name)
    tape = cases.tape_for(plain, data)
    expected = taped(tape, plain.qvalue_loss, data)[0]
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = math.nan
    assert not taped(tape, plain.qvalue_loss, data)[0].isfinite().all()
    assert_close(taped(tape, skips.qvalue_loss, data)[0], expected.detach())
    data["next"].pop("terminated")  # then done stands in for it
    data["next", "observation"][data["next", "done"].squeeze(-1)] = math.nan
    assert taped(tape, skips.qvalue_loss, data)[0].isfinite().all()
