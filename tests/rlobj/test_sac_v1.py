"""The first version of SACLoss (with V) against loops, and states after the end."""

import math

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from rlobj import LossModule, SACLoss
from rlobj.modules import ProbabilisticActor, TanhNormal, ValueOperator
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, distance, draw_action, linear, numbers, rows, taped

GAMMA = 0.9


def built(name: str = "sac_v1", **kwargs: object) -> LossModule:
    kwargs = {"num_qvalue_nets": 2, **kwargs}
    return cases.build(name, **kwargs).make_value_estimator(gamma=GAMMA)


@pytest.mark.parametrize("delay", [True, False])
def test_value_by_loop(delay: bool) -> None:
    """Without delayed critics this is eq. 5 of the paper."""
    loss, data = built(delay_qvalue=delay, reduction="none"), cases.batch(n=24)
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
@pytest.mark.parametrize("count", [1, 3])
def test_critic_by_loop(delay: bool, count: int) -> None:
    """Each critic learns from its share of the batch, and the target is V of the next state."""
    loss = built(delay_value=delay, num_qvalue_nets=count, reduction="none")
    data = cases.batch(n=12)
    net = numbers(loss, f"{'target_' if delay else ''}value_network_params")[0]
    critics, terms, errors = numbers(loss, "qvalue_network_params"), [], []
    for i, row in enumerate(rows(data)):
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(net, row["s2"])[0])
        q = linear(critics[i // (12 // count)], row["s"], row["a"])[0]
        terms.append(distance("smooth_l1", q, goal))
        errors.append((q - goal) ** 2)
    value, info = taped([], loss.qvalue_loss, data)
    assert_close(value, terms)
    assert_close(info["td_error"], errors)
    assert_close(loss.qvalue_loss(data.reshape(6, 2))[0].flatten(), terms)


def test_shares_of_a_batch_are_even() -> None:
    with pytest.raises(RuntimeError, match="2 critics cannot share a batch of 5 evenly"):
        built().qvalue_loss(cases.batch(n=5))


@pytest.mark.parametrize("delayed", [True, False])
def test_value_asks_the_delayed_actor(delayed: bool) -> None:
    loss = built(delay_actor=delayed, reduction="none")
    data, eps = cases.batch(n=6), torch.randn(6, cases.ACT)
    before = taped([eps], loss.value_loss, data)[0].detach()
    for name in ("actor_network_params", "target_actor_network_params"):
        moved = built(delay_actor=delayed, reduction="none")
        for parameter in getattr(moved, name).values(True, True):
            parameter.data.add_(0.5)
        same = torch.equal(taped([eps], moved.value_loss, data)[0], before)
        assert same == (delayed and not name.startswith("target"))


@pytest.mark.parametrize("term", ["actor", "qvalue", "value"])
def test_gradients(term: str) -> None:
    loss, data, eps = built(), cases.batch(n=6), torch.randn(6, cases.ACT)
    method = getattr(loss, f"{term}_loss")

    def compute() -> Tensor:
        return taped([eps], method, data)[0]

    cases.check_gradient(loss, compute, f"{term}_network_params")


def test_forward_holds_all_terms() -> None:
    loss, each, data = built(), built(reduction="none"), cases.batch(n=6)
    tape = cases.tape_for(loss, data)  # value, then actor
    out = taped(tape, loss, data)
    assert_close(out["loss_value"], taped(tape[:1], each.value_loss, data)[0].detach().mean())
    assert_close(out["loss_actor"], taped(tape[1:], each.actor_loss, data)[0].detach().mean())
    assert_close(out["loss_qvalue"], each.qvalue_loss(data)[0].detach().mean())


@pytest.mark.parametrize("name", ["sac", "sac_v1"])
def test_skipped_states_may_hold_anything(name: str) -> None:
    """The state after the end may be NaN; a truncated step still counts."""
    plain, skips = (built(name, reduction="none", skip_done_states=s) for s in (False, True))
    data = cases.batch(n=6)
    tape = cases.tape_for(plain, data)
    expected = taped(tape, plain.qvalue_loss, data)[0]
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = math.nan
    assert not taped(tape, plain.qvalue_loss, data)[0].isfinite().all()
    assert_close(taped(tape, skips.qvalue_loss, data)[0], expected.detach())
    data["next"].pop("terminated")  # then done stands in for it
    data["next", "observation"][data["next", "done"].squeeze(-1)] = math.nan
    assert taped(tape, skips.qvalue_loss, data)[0].isfinite().all()


def on_a_trunk(**kwargs: object) -> LossModule:
    """Every network starts with the same layer."""
    trunk = TensorDictModule(nn.Linear(cases.OBS, 4), in_keys=["observation"], out_keys=["hidden"])
    head = nn.Sequential(nn.Linear(4, 2 * cases.ACT), cases.MeanAndScale())
    actor = ProbabilisticActor(
        TensorDictSequential(trunk, TensorDictModule(head, ["hidden"], ["loc", "scale"])),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        spec=cases.spec(),
    )
    value = TensorDictSequential(trunk, ValueOperator(nn.Linear(4, 1), in_keys=["hidden"]))
    critic = ValueOperator(nn.Bilinear(4, cases.ACT, 1), ["hidden", "action"])
    return SACLoss(actor, TensorDictSequential(trunk, critic), value, **kwargs)


def test_delayed_value_keeps_its_own_trunk() -> None:
    loss, data = cases.perturb(on_a_trunk(reduction="none")), cases.batch(n=6)
    before = loss.qvalue_loss(data)[0].detach()
    loss.actor_network_params["module", "0", "module", "0", "module", "weight"].data.add_(1.0)
    assert torch.equal(loss.qvalue_loss(data)[0], before)
    loss.target_value_network_params["module", "0", "module", "weight"].data.add_(1.0)
    assert not torch.equal(loss.qvalue_loss(data)[0], before)
