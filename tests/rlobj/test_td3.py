"""TD3Loss: its actor by loop, its critics against the loop of TD3BCLoss's tests."""

import pytest
import torch

from rlobj import LossModule, SoftUpdate, TD3Loss
from tests.rlobj import cases
from tests.rlobj.cases import HIGH, LOW, assert_close, distance, linear, numbers, rows, taped

SIGMA, CLIP, GAMMA = 0.7, 0.5, 0.9


def built(**kwargs: object) -> LossModule:
    settings = {"policy_noise": SIGMA, "noise_clip": CLIP, **kwargs}
    return cases.build("td3", **settings).make_value_estimator(gamma=GAMMA)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_critic_by_loop(kind: str) -> None:
    loss, data = built(loss_function=kind, reduction="none"), cases.batch(n=24)
    eps = torch.randn(24, cases.ACT)
    actor = numbers(loss, "target_actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    losses, errors, smaller = [], [], set()
    for row, noise in zip(rows(data), eps.tolist(), strict=True):
        means = linear(actor, row["s2"])
        shifts = [clip(SIGMA * e, -CLIP, CLIP) for e in noise]
        box = zip(means, shifts, LOW, HIGH, strict=True)
        action = [clip(m + e, low, high) for m, e, low, high in box]
        after = [linear(q, row["s2"], action)[0] for q in target]
        smaller.add(after.index(min(after)))
        goal = row["r"] + (0.0 if row["end"] else GAMMA * min(after))
        now = [linear(q, row["s"], row["a"])[0] for q in online]
        losses.append(sum(distance(kind, q, goal) for q in now))
        errors.append([(q - goal) ** 2 for q in now])
    assert smaller == {0, 1}
    value, info = taped([eps], loss.value_loss, data)
    assert_close(value, losses)
    assert_close(info["td_error"].T, errors)


def test_actor_by_loop() -> None:
    loss, data = built(reduction="none"), cases.batch(n=12)
    actor, critics = (
        numbers(loss, "actor_network_params")[0],
        numbers(loss, "qvalue_network_params"),
    )
    actions = [linear(actor, row["s"]) for row in rows(data)]
    q = [
        [linear(c, r["s"], a)[0] for r, a in zip(rows(data), actions, strict=True)] for c in critics
    ]
    value, info = loss.actor_loss(data)
    assert_close(value, [-x for x in q[0]])
    assert_close(info["state_action_value_actor"], q)


def test_forward_reduces_terms_and_writes_priority() -> None:
    loss, each, data = built(), built(reduction="none"), cases.batch()
    tape = cases.tape_for(loss, data)
    out, (critic, info) = taped(tape, loss, data), taped(tape, each.value_loss, data)
    assert_close(out["loss_qvalue"], critic.detach().mean())
    assert_close(out["loss_actor"], each.actor_loss(data)[0].detach().mean())
    assert_close(data["td_error"], info["td_error"].max(0).values)
    for name in ("pred_value", "next_state_value", "target_value"):
        assert_close(out[name], info[name])
        assert not out[name].requires_grad


@pytest.mark.parametrize(("term", "net"), [("actor", "actor"), ("value", "qvalue")])
def test_gradients(term: str, net: str) -> None:
    loss, data, method = built(), cases.batch(), f"{term}_loss"
    tape = [0.3 * torch.randn(cases.N, cases.ACT)] if term == "value" else []
    cases.check_gradient(
        loss, lambda: taped(tape, getattr(loss, method), data)[0], f"{net}_network_params"
    )


def test_same_critic_loss_as_td3_bc() -> None:
    """Built on one set of parameters the two critics' losses are one."""
    loss, data = built(reduction="none"), cases.batch()
    other = cases.build("td3_bc", policy_noise=SIGMA, reduction="none")
    other.make_value_estimator(gamma=GAMMA)
    tape = cases.tape_for(loss, data)
    with other.bind(loss.tensors()):
        expected = taped(tape, other.qvalue_loss, data)[0]
    assert_close(taped(tape, loss.value_loss, data)[0], expected.detach())


def test_exactly_one_of_spec_and_bounds() -> None:
    with pytest.raises(ValueError, match="exactly one of action_spec and bounds"):
        cases.CASES["td3"](bounds=(-1.0, 1.0))


def test_integer_bounds_are_taken_as_they_are() -> None:
    loss = cases.CASES["td3"](action_spec=None, bounds=(-1, 1.5))
    assert_close(loss.max_action, 1.5)
    assert_close(loss.min_action, -1.0)
    assert loss.min_action.is_floating_point()


def test_target_of_a_trunk_that_the_actor_trains_follows() -> None:
    """With separate_losses the critics hold what they share with the actor as constants."""
    actor, critic = cases.deterministic(), cases.critic()
    critic.shared = actor.module
    loss = TD3Loss(actor, critic, action_spec=cases.spec(), separate_losses=True)
    updater = SoftUpdate(loss, tau=0.25)
    before = actor.module.weight.detach().clone()
    actor.module.weight.data += 1.0
    updater.step()
    found = loss.state_dict()["target_qvalue_network_params.shared.weight"]
    assert_close(found, (before + 0.25).expand(2, -1, -1))
