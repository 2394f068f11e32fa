"""CQLLoss against loops over states, critics and all 3 n sampled actions, and against slopes.

The reference is CQL(H) (Kumar et al. 2020, eq. 4 and app. F) as in the authors' code.
"""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlobj import CQLLoss, LossModule
from rlobj.specs import Bounded
from tests.rlobj import cases
from tests.rlobj.cases import (
    ACT,
    HIGH,
    LOW,
    assert_close,
    draw_action,
    gaussian,
    linear,
    numbers,
    rows,
    taped,
)

GAMMA, SAMPLES, TEMPERATURE, WEIGHT, THRESHOLD = 0.9, 4, 0.7, 5.0, 1.5
SETTINGS = {
    "num_random": SAMPLES,
    "temperature": TEMPERATURE,
    "min_q_weight": WEIGHT,
    "lagrange_thresh": THRESHOLD,
}


def built(**kwargs: object) -> LossModule:
    loss = CQLLoss(cases.stochastic(), cases.critic(), **{**SETTINGS, **kwargs})
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def calm(*shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape)


def penalty_noise(n: int = cases.N) -> list[Tensor]:
    """Noise for pi(s), pi(s') and the uniform actions, in the loss's order."""
    return [calm(SAMPLES, n, ACT), calm(SAMPLES, n, ACT), torch.rand(SAMPLES, n, ACT)]


def slow_gap(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> list[list[float]]:
    """``[critic][state]``: T log sum_j exp(Q(s, a_j) / T) / mu(a_j) - Q(s, a)."""
    actor = numbers(loss, "actor_network_params")[0]
    here, there, uniform = (x.tolist() for x in tape)
    volume = math.prod(h - w for w, h in zip(LOW, HIGH, strict=True))
    gaps = []
    for net in numbers(loss, "qvalue_network_params"):
        gaps.append([])
        for i, row in enumerate(rows(data)):
            total = 0.0
            for j in range(SAMPLES):
                box = zip(LOW, HIGH, uniform[j][i], strict=True)
                samples = [
                    ([w + (h - w) * u for w, h, u in box], -math.log(volume)),
                    draw_action(actor, row["s"], here[j][i]),
                    draw_action(actor, row["s2"], there[j][i]),
                ]
                for action, log_density in samples:
                    q = linear(net, row["s"], action)[0]
                    total += math.exp(q / TEMPERATURE) / math.exp(log_density)
            data_q = linear(net, row["s"], row["a"])[0]
            gaps[-1].append(TEMPERATURE * math.log(total) - data_q)
    return gaps


def test_penalty_by_loop() -> None:
    loss, data, tape = built(reduction="none"), cases.batch(), penalty_noise()
    gaps = slow_gap(loss, data, tape)
    value, info = taped(tape, loss.cql_loss, data)
    assert_close(value, [WEIGHT * (a + b) for a, b in zip(*gaps, strict=True)])
    assert_close(info["cql_gap"], WEIGHT * torch.tensor(gaps))
    assert not info["cql_gap"].requires_grad


def test_lagrange_by_loop() -> None:
    loss, data, tape = built(with_lagrange=True, reduction="none"), cases.batch(), penalty_noise()
    loss.log_alpha_prime.data.fill_(0.4)
    prime, gaps = math.exp(0.4), slow_gap(loss, data, tape)
    excess = [[WEIGHT * g - THRESHOLD for g in per_state] for per_state in gaps]
    value, info = taped(tape, loss.cql_loss, data)
    assert_close(value, [prime * (a + b) for a, b in zip(*excess, strict=True)])
    dual, _ = loss.alpha_prime_loss(info["cql_gap"])
    assert_close(dual, [-prime * (a + b) / 2 for a, b in zip(*excess, strict=True)])


def test_alpha_prime_is_capped() -> None:
    loss = built(with_lagrange=True)
    loss.log_alpha_prime.data.fill_(50.0)
    gap = torch.full((2, 1), THRESHOLD + 1)
    assert_close(loss.alpha_prime_loss(gap)[0], [-1e6])


def test_alpha_prime_rises_with_the_gap() -> None:
    loss = built(with_lagrange=True)
    (grad,) = torch.autograd.grad(
        loss.alpha_prime_loss(torch.full((2, 1), THRESHOLD + 1))[0].sum(), loss.log_alpha_prime
    )
    assert grad < 0


def test_flat_critic_gives_the_volume() -> None:
    """For Q = 0 the soft maximum estimates 3 n times the volume of the action box: each of the
    three proposals alone is an unbiased estimate of the integral of 1."""
    loss, data = built(num_random=4000, temperature=1.0, min_q_weight=1.0), cases.batch(n=3)
    for name, tensor in loss.tensors().items():
        if "network" in name:
            tensor.data.mul_(0.0 if name.startswith("qvalue") else 0.3)
    gap = loss.cql_loss(data)[1]["cql_gap"]
    volume = math.prod(h - w for w, h in zip(LOW, HIGH, strict=True))
    assert gap[0, 0].item() == pytest.approx(math.log(3 * 4000 * volume), abs=0.1)


def slow_target(loss: LossModule, data: TensorDict, eps: Tensor, backup: str) -> list[float]:
    """Next values: entropy left out, entropy kept, or best of several actions."""
    actor = numbers(loss, "actor_network_params")[0]  # the one being trained, delayed or not
    target = numbers(loss, "target_qvalue_network_params")
    alpha, found = math.exp(loss.log_alpha.item()), []
    for i, row in enumerate(rows(data)):
        tries = eps[:, i] if backup == "max" else eps[i : i + 1]
        draws = [draw_action(actor, row["s2"], e.tolist()) for e in tries]
        per_critic = [max(linear(net, row["s2"], a)[0] for a, _ in draws) for net in target]
        bonus = -alpha * draws[0][1] if backup == "entropy" else 0.0
        found.append(min(per_critic) + bonus)
    return found


BACKUPS = {
    "plain": {},
    "entropy": {"deterministic_backup": False},
    "max": {"max_q_backup": True},
}


@pytest.mark.parametrize("backup", BACKUPS)
@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("delay_actor", [False, True])
def test_critic_by_loop(backup: str, kind: str, delay_actor: bool) -> None:
    loss = built(loss_function=kind, delay_actor=delay_actor, **BACKUPS[backup], reduction="none")
    data = cases.batch(n=16)
    eps = calm(SAMPLES, 16, ACT) if backup == "max" else calm(16, ACT)
    after = slow_target(loss, data, eps, backup)
    expected, errors, far = [], [], set()
    for row, v in zip(rows(data), after, strict=True):
        goal = row["r"] + (0.0 if row["end"] else GAMMA * v)
        now = [linear(q, row["s"], row["a"])[0] for q in numbers(loss, "qvalue_network_params")]
        expected.append(sum(cases.distance(kind, q, goal) for q in now))
        errors.append([(q - goal) ** 2 for q in now])
        far |= {abs(q - goal) > 1 for q in now}
    assert far == {False, True}
    value, info = taped([eps], loss.q_loss, data)
    assert_close(value, expected)
    assert_close(info["td_error"], torch.tensor(errors).T)


def test_actor_by_loop() -> None:
    loss, data, eps = built(reduction="none"), cases.batch(n=16), calm(16, ACT)
    actor, alpha = numbers(loss, "actor_network_params")[0], math.exp(loss.log_alpha.item())
    expected, met = [], set()
    for row, e in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s"], e)
        q = [linear(net, row["s"], action)[0] for net in numbers(loss, "qvalue_network_params")]
        expected.append(alpha * log_prob - min(q))
        met.add(q.index(min(q)))
    assert met == {0, 1}
    assert_close(taped([eps], loss.actor_loss, data)[0], expected)


def test_warm_up_by_loop() -> None:
    """The authors' first steps of the policy: alpha log pi(b|s) - log pi(a|s)."""
    loss, data, eps = built(reduction="none"), cases.batch(), calm(cases.N, ACT)
    actor, alpha = numbers(loss, "actor_network_params")[0], math.exp(loss.log_alpha.item())
    expected, scores = [], []
    for row, e in zip(rows(data), eps.tolist(), strict=True):
        before = cases.unsquash(row["a"])
        scores.append(cases.squashed_log_density(before, *gaussian(actor, row["s"])))
        expected.append(alpha * draw_action(actor, row["s"], e)[1] - scores[-1])
    value, info = taped([eps], loss.actor_bc_loss, data)
    assert_close(value, expected)
    assert_close(info["bc_log_prob"], scores)
    assert not info["bc_log_prob"].requires_grad


def test_temperature_by_hand() -> None:
    loss = built(target_entropy=-3.0)
    loss.log_alpha.data.fill_(0.7)
    assert_close(loss.alpha_loss(torch.tensor([1.0, 5.0])), [1.4, -1.4])
    assert built().target_entropy.item() == -ACT


def test_forward_reduces_terms_and_writes_priority() -> None:
    loss, each = (built(with_lagrange=True, reduction=r) for r in ("mean", "none"))
    data = cases.batch()
    tape = cases.tape_for(loss, data)
    out = taped(tape, loss, data)
    q, q_info = taped(tape[:1], each.q_loss, data)
    cql, cql_info = taped(tape[1:4], each.cql_loss, data)
    actor, info = taped(tape[5:], each.actor_loss, data)
    expected = {
        "loss_qvalue": q,
        "loss_cql": cql,
        "loss_actor": actor,
        "loss_actor_bc": taped(tape[4:5], each.actor_bc_loss, data)[0],
        "loss_alpha": loss.alpha_loss(info["log_prob"]),
        "loss_alpha_prime": loss.alpha_prime_loss(cql_info["cql_gap"])[0],
        "alpha": loss.log_alpha.exp(),
        "entropy": -info["log_prob"],
    }
    assert set(expected) == set(loss.out_keys)
    for name, value in expected.items():
        assert_close(out[name], value.detach().mean())
        assert out[name].requires_grad == name.startswith("loss")
    assert_close(data["td_error"], q_info["td_error"].max(0).values)
    for i in range(2):
        assert_close(data[f"pred_q{i + 1}"].squeeze(-1), q_info["pred_value"][i])
        assert_close(data[f"cql_q{i + 1}_loss"].squeeze(-1), cql_info["cql_gap"][i])
        assert not data[f"pred_q{i + 1}"].requires_grad
        assert data[f"cql_q{i + 1}_loss"].shape == data[f"pred_q{i + 1}"].shape == (cases.N, 1)


TERMS = {
    "q_loss": "qvalue_network_params",
    "cql_loss": "qvalue_network_params",
    "actor_loss": "actor_network_params",
    "actor_bc_loss": "actor_network_params",
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("settings", [{}, {"with_lagrange": True, "deterministic_backup": False}])
def test_gradients(term: str, settings: dict) -> None:
    loss, data = built(**settings), cases.batch()
    tape = penalty_noise() if term == "cql_loss" else [calm(cases.N, ACT)]
    method = getattr(loss, term)
    cases.check_gradient(loss, lambda: taped(tape, method, data)[0], TERMS[term])


def test_dual_gradient() -> None:
    loss, data, tape = built(with_lagrange=True), cases.batch(), penalty_noise()

    def term() -> Tensor:
        return loss.alpha_prime_loss(taped(tape, loss.cql_loss, data)[1]["cql_gap"])[0]

    cases.check_gradient(loss, term, "log_alpha_prime")


def test_dual_follows_the_mean_gap() -> None:
    """Under "sum", too: the threshold is one of a single state's gap."""
    data = cases.batch()
    tape, found = cases.tape_for(built(with_lagrange=True), data), {}
    for reduction in ("mean", "sum", "none"):
        loss = built(with_lagrange=True, reduction=reduction)
        found[reduction] = taped(tape, loss, data)["loss_alpha_prime"].detach()
    assert found["none"].shape == (cases.N,)
    assert_close(found["none"].mean(), found["mean"])
    assert_close(found["sum"], found["mean"])


def test_upstreams_penalty_needs_no_bounds() -> None:
    actor = cases.stochastic()
    actor.spec = None
    CQLLoss(actor, cases.critic(), target_entropy=-1.0, upstream=True)


def test_bounds_come_from_the_spec() -> None:
    actor = cases.stochastic()
    assert_close(CQLLoss(actor, cases.critic()).high, HIGH)
    wide = CQLLoss(actor, cases.critic(), action_spec=Bounded(-3.0, 7.0, (ACT,)))
    assert_close(wide.low, [-3.0, -3.0])
    actor.spec = None
    with pytest.raises(ValueError, match="has no bounds"):
        CQLLoss(actor, cases.critic(), target_entropy=-1.0)


def test_windows_of_time() -> None:
    """A batch [B, T] is B T transitions."""
    loss, flat = built(reduction="none"), cases.batch(n=6)
    tape = [*penalty_noise(6), calm(6, ACT)]
    split = [x.reshape(*x.shape[:-2], 2, 3, ACT) for x in tape]
    value, shaped = (
        taped(t[:3], loss.cql_loss, d)[0] for t, d in ((tape, flat), (split, flat.reshape(2, 3)))
    )
    assert_close(shaped.reshape(6), value)
    value, shaped = (
        taped(t[3:], loss.q_loss, d)[0] for t, d in ((tape, flat), (split, flat.reshape(2, 3)))
    )
    assert_close(shaped.reshape(6), value)


@pytest.mark.parametrize(("log", "alpha"), [(-2.0, math.exp(-2.0)), (14.0, 1e6)])
def test_range_of_the_dual_variable(log: float, alpha: float) -> None:
    """alpha' may fall below one, and stops at a million, as upstream."""
    loss = built(with_lagrange=True)
    loss.log_alpha_prime.data.fill_(log)
    value = loss.alpha_prime_loss(torch.tensor([[3.0], [5.0]]))[0]
    assert_close(value, [-alpha * (4.0 - THRESHOLD)])
