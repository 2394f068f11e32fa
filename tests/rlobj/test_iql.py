"""IQLLoss against arithmetic by hand, against loops, and against finite differences."""

import math

import pytest
import torch
from tensordict import TensorDict

from rlobj import IQLLoss, LossModule
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, gaussian, linear, numbers, rows

TAU, BETA, GAMMA, CAP = 0.8, 3.0, 0.9, 100.0


def built(gaussian_actor: bool = True, **kwargs: object) -> LossModule:
    networks = cases.stochastic(gaussian_actor), cases.critic(), cases.value()
    loss = IQLLoss(*networks, **{"expectile": TAU, "temperature": BETA, **kwargs})
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def test_expectile_by_hand() -> None:
    diff = torch.tensor([-2.0, 3.0, 0.0])
    # |0.8 - 1| * 4 = 0.8 below, 0.8 * 9 = 7.2 above (eq. 5)
    assert_close(IQLLoss.loss_value_diff(diff, 0.8), [0.8, 7.2, 0.0])
    assert_close(IQLLoss.loss_value_diff(diff, 0.5), [2.0, 4.5, 0.0])


def test_minimum_of_expectile_regression_is_the_expectile() -> None:
    """tau E[(x - m)+] = (1 - tau) E[(m - x)+] at the minimum m."""
    sample, grid = torch.tensor([0.0, 1.0, 2.0, 10.0]), torch.linspace(0, 10, 10_001)
    total = IQLLoss.loss_value_diff(sample - grid.unsqueeze(-1), 0.9).sum(-1)
    m = grid[total.argmin()]
    above, below = (sample - m).clamp(min=0).sum(), (m - sample).clamp(min=0).sum()
    assert 0.9 * above.item() == pytest.approx(0.1 * below.item(), rel=1e-2)


def slow(loss: LossModule, data: TensorDict, kind: str = "smooth_l1") -> dict:
    """Per-sample losses by loops (eq. 5 to 7), and what the loops met."""
    actor, v = (numbers(loss, f"{n}_network_params")[0] for n in ("actor", "value"))
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    out: dict = {k: [] for k in ("actor", "value", "qvalue", "td_error", "log_prob")}
    met = set()
    for row in rows(data):
        old = [linear(q, row["s"], row["a"])[0] for q in target]
        here = linear(v, row["s"])[0]
        u = min(old) - here
        out["value"].append((TAU if u > 0 else 1 - TAU) * u * u)
        log_prob = cases.normal_log_density(row["a"], *gaussian(actor, row["s"]))
        out["log_prob"].append(log_prob)
        out["actor"].append(-min(math.exp(BETA * u), CAP) * log_prob)
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(v, row["s2"])[0])
        now = [linear(q, row["s"], row["a"])[0] for q in online]
        out["qvalue"].append(sum(cases.distance(kind, q, goal) for q in now))
        out["td_error"].append([(q - goal) ** 2 for q in now])
        met |= {("above", u > 0), ("capped", math.exp(BETA * u) > CAP)}
        met |= {("smaller", old.index(min(old))), ("end", row["end"])}
        met |= {("far", abs(q - goal) > 1) for q in now}
    assert len(met) == 10, "the batch does not exercise every branch"
    return out


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_terms_by_loop(kind: str) -> None:
    loss, data = built(loss_function=kind, reduction="none"), cases.batch(n=24)
    expected = slow(loss, data, kind)
    assert_close(loss.actor_loss(data)[0], expected["actor"])
    assert_close(loss.value_loss(data)[0], expected["value"])
    value, info = loss.qvalue_loss(data)
    assert_close(value, expected["qvalue"])
    assert_close(info["td_error"], torch.tensor(expected["td_error"]).T)


def test_squashed_policy_scores_the_datas_action() -> None:
    loss, data = built(gaussian_actor=False, reduction="none"), cases.batch()
    actor = numbers(loss, "actor_network_params")[0]
    expected = [
        -cases.squashed_log_density(cases.unsquash(row["a"]), *gaussian(actor, row["s"]))
        for row in rows(data)
    ]
    value, info = loss.actor_loss(data)
    assert_close(value / info["weight"], expected)


def test_forward_reduces_terms_and_writes_priority() -> None:
    loss, data = built(), cases.batch(n=24)
    out, expected = loss(data), slow(loss, data)
    for name in ("actor", "qvalue", "value"):
        assert_close(out[f"loss_{name}"], sum(expected[name]) / 24)
    assert_close(out["entropy"], -sum(expected["log_prob"]) / 24)
    assert not out["entropy"].requires_grad
    assert_close(data["td_error"], [max(errors) for errors in expected["td_error"]])
    assert_close(data["_log_prob"], expected["log_prob"])
    assert not data["_log_prob"].requires_grad


@pytest.mark.parametrize("as_list", [True, False])
def test_single_critic_has_no_axis_of_its_own(as_list: bool) -> None:
    critic = [cases.critic()] if as_list else cases.critic()
    networks = cases.stochastic(), critic, cases.value()
    loss = IQLLoss(*networks, num_qvalue_nets=1, reduction="none")
    assert loss.state_dict()["qvalue_network_params.module.linear.weight"].shape == (1, 5)
    loss, data = cases.perturb(loss).make_value_estimator(gamma=GAMMA), cases.batch()
    critic, v = (numbers(loss, f"{n}_network_params")[0] for n in ("qvalue", "value"))
    expected = []
    for row in rows(data):
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(v, row["s2"])[0])
        expected.append(cases.distance("smooth_l1", linear(critic, row["s"], row["a"])[0], goal))
    assert_close(loss.qvalue_loss(data)[0], expected)
    assert loss.qvalue_loss(data)[1]["td_error"].shape == (1, cases.N)


@pytest.mark.parametrize("term", ["actor", "value", "qvalue"])
def test_gradients(term: str) -> None:
    loss, data = built(), cases.batch()
    method = getattr(loss, f"{term}_loss")
    cases.check_gradient(loss, lambda: method(data)[0], f"{term}_network_params")


def test_capped_weight() -> None:
    loss, data = built(temperature=1e3), cases.batch(n=24)
    _, info = loss.actor_loss(data)
    assert info["weight"].max() == CAP
    assert info["weight"].isfinite().all()


@pytest.mark.parametrize("expectile", [0.0, 1.0, -0.1, 1.5])
def test_expectile_is_checked(expectile: float) -> None:
    with pytest.raises(ValueError, match=r"expectile must lie in \(0, 1\)"):
        built(expectile=expectile)


def test_defaults_are_upstreams() -> None:
    loss = IQLLoss(cases.stochastic(), cases.critic(), cases.value())
    assert (loss.temperature, loss.expectile, loss.loss_function) == (1.0, 0.5, "smooth_l1")
    assert loss.tensors()["qvalue_network_params.module.linear.weight"].shape[0] == 2
    assert loss.value_estimator.gamma.item() == 0.99


def test_default_expectile_of_the_loss_is_used() -> None:
    """``loss_value_diff`` has another default (0.8) than the loss (0.5)."""
    data = cases.batch()
    half, most = (built(expectile=e, reduction="none") for e in (0.5, 0.9))
    u = (2 * half.value_loss(data)[0]).sqrt()
    v = most.value_loss(data)[0]
    assert_close(v, torch.where(v > 0.5 * u**2, 0.9, 0.1) * u**2)


def test_what_the_critics_think_reaches_no_observation() -> None:
    """An encoder in front of the loss learns from V(s) and the policy, not from the delayed Q."""
    loss, data = built(reduction="none"), cases.batch()
    seen = data["observation"].requires_grad_()
    (found,) = torch.autograd.grad(loss.value_loss(data)[0].sum(), seen)
    value = loss.run_network("value_network", data)["state_value"].squeeze(-1)
    difference = loss._min_target_q(data).detach() - value
    (wanted,) = torch.autograd.grad(loss.loss_value_diff(difference, loss.expectile).sum(), seen)
    assert_close(found, wanted)
