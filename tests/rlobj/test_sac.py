"""SACLoss against loops, against finite differences, and its temperature by hand."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlobj import LossModule, SACLoss
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, draw_action, linear, numbers, rows, taped

GAMMA = 0.9


def built(**kwargs: object) -> LossModule:
    return cases.build("sac", **kwargs).make_value_estimator(gamma=GAMMA)


def slow_actor(loss: LossModule, data: TensorDict, eps: Tensor) -> tuple[list, list, set]:
    """``alpha log pi - min_i Q_i`` by loops, log pi, and which critic was the smaller."""
    actor = numbers(loss, "actor_network_params")[0]
    critics = numbers(loss, "qvalue_network_params")
    alpha, terms, log_probs, met = math.exp(loss.log_alpha.item()), [], [], set()
    for row, noise in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s"], noise)
        q = [linear(net, row["s"], action)[0] for net in critics]
        met.add(q.index(min(q)))
        terms.append(alpha * log_prob - min(q))
        log_probs.append(log_prob)
    return terms, log_probs, met


def slow_critic(
    loss: LossModule, data: TensorDict, eps: Tensor, kind: str
) -> tuple[list, list, set]:
    """The soft Bellman error by loops (eq. 5), the priority, and what the loop met. Actions come
    from the actor being trained, whether or not there is a delayed one."""
    actor = numbers(loss, "actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    alpha, terms, errors, met = math.exp(loss.log_alpha.item()), [], [], set()
    for row, noise in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s2"], noise)
        after = [linear(net, row["s2"], action)[0] for net in target]
        soft = min(after) - alpha * log_prob
        goal = row["r"] + (0.0 if row["end"] else GAMMA * soft)
        now = [linear(net, row["s"], row["a"])[0] for net in online]
        terms.append(sum(cases.distance(kind, q, goal) for q in now))
        errors.append(max(abs(q - goal) for q in now))
        met |= {("smaller", after.index(min(after))), ("end", row["end"])}
        met |= {("far", abs(q - goal) > 1) for q in now}
    return terms, errors, met


def test_actor_by_loop() -> None:
    loss, data, eps = built(reduction="none"), cases.batch(n=24), 0.5 * torch.randn(24, cases.ACT)
    expected, log_probs, met = slow_actor(loss, data, eps)
    assert met == {0, 1}
    value, info = taped([eps], loss.actor_loss, data)
    assert_close(value, expected)
    assert_close(info["log_prob"], log_probs)
    assert not info["log_prob"].requires_grad


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("delay_actor", [False, True])
def test_critic_by_loop(kind: str, delay_actor: bool) -> None:
    loss = built(loss_function=kind, delay_actor=delay_actor, reduction="none")
    data, eps = cases.batch(n=24), 0.5 * torch.randn(24, cases.ACT)
    expected, errors, met = slow_critic(loss, data, eps, kind)
    assert len(met) == 6, "the batch does not exercise every branch"
    value, info = taped([eps], loss.qvalue_loss, data)
    assert_close(value, expected)
    assert_close(info["td_error"], errors)


def test_one_critic_and_more() -> None:
    data, eps = cases.batch(n=24), 0.5 * torch.randn(24, cases.ACT)
    for count in (1, 3):
        loss = built(num_qvalue_nets=count, reduction="none")
        expected, _, met = slow_actor(loss, data, eps)
        assert len(met) == count
        assert_close(taped([eps], loss.actor_loss, data)[0], expected)


def test_without_delay_the_target_is_the_online_critic() -> None:
    loss, data, eps = built(delay_qvalue=False), cases.batch(), torch.randn(5, cases.ACT)
    assert not any(k.startswith("target_") for k in loss.state_dict())
    twin = built()
    for name, tensor in twin.tensors().items():
        tensor.data.copy_(loss.tensors()[name.removeprefix("target_")].detach())
    for one, other in zip(*(_with_gradient(x, data, eps) for x in (loss, twin)), strict=True):
        assert_close(one, other)


def _with_gradient(loss: LossModule, data: TensorDict, eps: Tensor) -> list[Tensor]:
    value = taped([eps], loss.qvalue_loss, data)[0].sum()
    online = [v for k, v in loss.named_parameters() if k.startswith("qvalue")]
    return [value, *torch.autograd.grad(value, online)]


def test_temperature_by_hand() -> None:
    loss = built(target_entropy=-3.0)
    loss.log_alpha.data.fill_(0.7)
    # -log(alpha) (log pi + H): -0.7 * (1 - 3), -0.7 * (5 - 3)
    value = loss.alpha_loss(torch.tensor([1.0, 5.0]))
    assert_close(value, [1.4, -1.4])
    (grad,) = torch.autograd.grad(value.sum(), loss.log_alpha)
    assert_close(grad, 0.0)
    # entropy too low (log pi = 5 > 3): descent raises alpha
    (grad,) = torch.autograd.grad(loss.alpha_loss(torch.tensor([5.0])).sum(), loss.log_alpha)
    assert_close(grad, -2.0)


def test_temperature_sees_log_prob_as_a_constant() -> None:
    loss, log_prob = built(), torch.randn(4, requires_grad=True)
    value = loss.alpha_loss(log_prob).sum()
    assert torch.autograd.grad(value, log_prob, allow_unused=True) == (None,)


@pytest.mark.parametrize("term", ["actor", "qvalue"])
@pytest.mark.parametrize("delay_actor", [False, True])
def test_gradients(term: str, delay_actor: bool) -> None:
    loss, data, eps = built(delay_actor=delay_actor), cases.batch(), torch.randn(5, cases.ACT)
    method = getattr(loss, f"{term}_loss")
    cases.check_gradient(loss, lambda: taped([eps], method, data)[0], f"{term}_network_params")


def test_temperature_gradient() -> None:
    loss, data, eps = built(), cases.batch(), torch.randn(5, cases.ACT)

    def term() -> Tensor:
        return loss.alpha_loss(taped([eps], loss.actor_loss, data)[1]["log_prob"])

    cases.check_gradient(loss, term, "log_alpha", "_target_entropy")


def test_forward_reduces_terms_and_writes_priority() -> None:
    loss, data = built(), cases.batch()
    tape = cases.tape_for(loss, data)
    out = taped(tape, loss, data)
    critic, errors, _ = slow_critic(loss, data, tape[0], "smooth_l1")
    actor, log_prob, _ = slow_actor(loss, data, tape[1])
    entropy = -sum(log_prob) / len(log_prob)
    assert_close(out["loss_qvalue"], sum(critic) / len(critic))
    assert_close(out["loss_actor"], sum(actor) / len(actor))
    assert_close(out["entropy"], entropy)
    assert_close(out["alpha"], math.exp(loss.log_alpha.item()))
    assert_close(out["loss_alpha"], -loss.log_alpha.item() * (-entropy - cases.ACT))
    assert_close(data["td_error"], errors)
    assert not out["alpha"].requires_grad
    assert not out["entropy"].requires_grad


def test_fixed_temperature() -> None:
    loss, data = built(fixed_alpha=True, alpha_init=0.3), cases.batch()
    loss.log_alpha.fill_(math.log(0.3))
    out = loss(data)
    # -log(alpha) (log pi + H) is reported, and nothing is trained by it
    assert_close(out["loss_alpha"], math.log(0.3) * (out["entropy"] + cases.ACT))
    assert not out["loss_alpha"].requires_grad
    assert_close(out["alpha"], 0.3)
    assert "log_alpha" not in dict(loss.named_parameters())


@pytest.mark.parametrize(
    ("low", "high", "alpha"),
    [(0.5, 2.0, 0.5), (0.01, 0.05, 0.05), (None, 2.0, 0.1), (0.2, None, 0.2)],
)
def test_temperature_range(low: float | None, high: float | None, alpha: float) -> None:
    loss = SACLoss(
        cases.stochastic(), cases.critic(), alpha_init=0.1, min_alpha=low, max_alpha=high
    )
    assert_close(loss.alpha, alpha)


def test_temperature_comes_back_at_once() -> None:
    """Steps beyond an end of the range do not pile up, and a bound loss stays a pure function."""
    loss, data = built(alpha_init=0.5, min_alpha=0.2, max_alpha=0.9), cases.batch()
    loss.log_alpha.data.fill_(-50.0)
    with loss.bind(loss.tensors()):
        out = loss(data)
    assert loss.log_alpha.item() == -50.0
    assert_close(out["loss_alpha"], math.log(0.2) * (out["entropy"] + cases.ACT))
    assert_close(torch.autograd.grad(out["loss_alpha"], loss.log_alpha)[0], out["entropy"] + 2.0)
    loss(data)
    assert_close(loss.log_alpha, math.log(0.2))


@pytest.mark.parametrize("name", ["sac", "discrete_sac", "cql", "online_dt"])
@pytest.mark.parametrize(
    ("bounds", "start", "end"),
    [({"max_alpha": 0.9}, 50.0, 0.9), ({"min_alpha": 0.2}, -50.0, 0.2)],
)
def test_one_end_is_enough(name: str, bounds: dict[str, float], start: float, end: float) -> None:
    loss = cases.build(name, alpha_init=0.5, **bounds)
    loss.log_alpha.data.fill_(start)
    loss(cases.batch_for(name))
    assert_close(loss.log_alpha, math.log(end))


def test_a_lower_end_can_be_set_alone() -> None:
    loss = built()
    loss.min_log_alpha, loss.log_alpha = math.log(0.2), -50.0
    assert loss.max_log_alpha is None
    assert_close(loss.alpha, 0.2)
    loss(cases.batch())
    assert_close(loss.log_alpha, math.log(0.2))


def test_range_of_the_temperature() -> None:
    actor, critic = cases.stochastic(), cases.critic()
    alone = SACLoss(actor, critic, min_alpha=0.2)
    assert_close(alone.max_log_alpha, math.log(1e9))  # as upstream
    assert SACLoss(actor, critic, max_alpha=0.2).min_log_alpha is None
    assert SACLoss(actor, critic, min_alpha=0.0).min_log_alpha is None
    with pytest.raises(ValueError, match="max_alpha must be positive or None"):
        SACLoss(actor, critic, min_alpha=0.1, max_alpha=0.0)


def test_action_key_follows_the_actor() -> None:
    loss = SACLoss(cases.stochastic(action="move"), cases.critic("move"))
    assert loss.tensor_keys.action == "move"
    assert loss.tensor_keys.log_prob == "move_log_prob"
    assert "move" in loss.in_keys
    assert "action" not in loss.in_keys


def test_alpha_init() -> None:
    loss = SACLoss(cases.stochastic(), cases.critic(), alpha_init=0.2)
    assert loss.log_alpha.item() == pytest.approx(math.log(0.2))
    assert loss.alpha_init.item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="alpha_init must be positive"):
        SACLoss(cases.stochastic(), cases.critic(), alpha_init=0.0)


def test_target_entropy() -> None:
    actor, critic = cases.stochastic(), cases.critic()
    assert SACLoss(actor, critic).target_entropy.item() == -cases.ACT
    assert SACLoss(actor, critic, target_entropy=-7).target_entropy.item() == -7
    wide = cases.Bounded(-1.0, 1.0, (6,))
    assert SACLoss(actor, critic, action_spec=wide).target_entropy.item() == -6
    composite = {"action": wide}
    assert SACLoss(actor, critic, action_spec=composite).target_entropy.item() == -6
    actor.spec = None
    with pytest.raises(RuntimeError, match="target_entropy='auto' needs the action's shape"):
        SACLoss(actor, critic)
