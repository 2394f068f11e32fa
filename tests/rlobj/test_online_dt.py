"""OnlineDTLoss against loops and slopes."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from rlobj import LossModule, OnlineDTLoss
from rlobj.modules import ProbabilisticActor
from tests.rlobj import cases
from tests.rlobj.cases import ACT, STEPS, assert_close, numbers, taped

SAMPLES, TARGET = 3, -1.5
KEYS = ("observation", "action", "return_to_go")


def built(**kwargs: object) -> LossModule:
    settings = {"samples_mc_entropy": SAMPLES, "target_entropy": TARGET, **kwargs}
    return cases.perturb(OnlineDTLoss(cases.stochastic_window(), **settings))


def windows() -> TensorDict:
    data = cases.windows()
    low, high = torch.tensor(cases.LOW), torch.tensor(cases.HIGH)
    data["action"] = low + (high - low) * data["action"].sigmoid()
    return data


def calm() -> list[Tensor]:
    return [0.5 * torch.randn(SAMPLES, 3, STEPS, ACT)]


def slow(loss: LossModule, data: TensorDict, eps: Tensor) -> dict[str, Tensor]:
    """log pi(a), and minus the mean of log pi over samples of pi, per step (eq. 5 and 6)."""
    net = numbers(loss, "actor_network_params")[0]
    score, entropy = torch.zeros(2, 3, STEPS)
    for b in range(3):
        for t in range(STEPS):
            step = [x for k in KEYS for x in data[k][b, t].tolist()]
            before = cases.unsquash(data["action"][b, t].tolist())
            mean, scale = cases.gaussian(net, step)
            score[b, t] = cases.squashed_log_density(before, mean, scale)
            draws = [cases.draw_action(net, step, e.tolist())[1] for e in eps[:, b, t]]
            entropy[b, t] = -sum(draws) / SAMPLES
    return {"score": score, "entropy": entropy}


@pytest.mark.parametrize("fixed", [False, True])
def test_terms_by_loop(fixed: bool) -> None:
    loss, data, tape = built(reduction="none", fixed_alpha=fixed), windows(), calm()
    expected, alpha = slow(loss, data, tape[0]), math.exp(loss.log_alpha.item())
    out = taped(tape, loss, data)
    assert_close(out["loss_log_likelihood"], -expected["score"])
    assert_close(out["loss_entropy"], -alpha * expected["entropy"])
    assert_close(out["loss_alpha"], alpha * (expected["entropy"] - TARGET))
    assert out["loss_alpha"].requires_grad == (not fixed)


def test_reports() -> None:
    loss, data, tape = built(), windows(), calm()
    out, expected = taped(tape, loss, data), slow(loss, data, tape[0])
    assert_close(out["alpha"], loss.log_alpha.exp().detach())
    assert_close(out["entropy"], expected["entropy"].mean())
    assert not out["alpha"].requires_grad
    assert not out["entropy"].requires_grad
    assert_close(out["loss_log_likelihood"], -expected["score"].mean())


def test_by_hand() -> None:
    """pi(a) = N(0, 1), one step whose action is 0.6, the noise 0.5 and -1.5, alpha = 2, target -1.

    -log N(0.6) = 0.18 + log(2 pi) / 2; the entropy is (0.125 + 1.125) / 2 + log(2 pi) / 2.
    """
    net = TensorDictModule(lambda s: (0 * s, torch.ones_like(s)), ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(net, ["loc", "scale"], distribution_class=cases.IndependentNormal)
    loss = OnlineDTLoss(actor, alpha_init=2.0, target_entropy=-1.0, samples_mc_entropy=2)
    noise = torch.tensor([0.5, -1.5]).reshape(2, 1, 1, 1)
    out = taped(
        [noise], lambda: loss(observation=torch.zeros(1, 1, 1), action=torch.full((1, 1, 1), 0.6))
    )
    found = dict(zip(loss.out_keys, out, strict=True))
    expected = {"loss_log_likelihood": 1.0989385332, "entropy": 1.5439385332, "alpha": 2.0}
    expected |= {"loss_entropy": -3.0878770664, "loss_alpha": 5.0878770664}
    for name, number in expected.items():
        assert found[name].item() == pytest.approx(number, abs=1e-9)


@pytest.mark.parametrize("column", [False, True])
def test_padding_by_loop(column: bool) -> None:
    data, tape, keep = windows(), calm(), torch.ones(3, STEPS, dtype=torch.bool)
    keep[0, :2], keep[2, :3] = False, False
    data["collector", "mask"] = keep.unsqueeze(-1) if column else keep
    for reduction, over in (("mean", float(keep.sum())), ("sum", 1.0)):
        loss = built(reduction=reduction)
        expected, alpha = slow(loss, data, tape[0]), math.exp(loss.log_alpha.item())
        out = taped(tape, loss, data)
        assert_close(out["loss_log_likelihood"], -expected["score"][keep].sum() / over)
        assert_close(out["loss_entropy"], -alpha * expected["entropy"][keep].sum() / over)
        excess = (expected["entropy"] - TARGET)[keep].sum()
        assert_close(out["loss_alpha"], alpha * excess / over)
    each = taped(tape, built(reduction="none"), data)["loss_log_likelihood"]
    assert_close(each, torch.where(keep, -expected["score"], 0.0))


TRAINED = {
    "loss_log_likelihood": "actor_network_params",
    "loss_entropy": "actor_network_params",
    "loss_alpha": "log_alpha",
}


@pytest.mark.parametrize("term", TRAINED)
def test_gradients(term: str) -> None:
    loss, data, tape = built(), windows(), calm()
    cases.check_gradient(loss, lambda: taped(tape, loss, data)[term], TRAINED[term])


def test_alpha_falls_while_the_entropy_is_above_its_target() -> None:
    for target, sign in ((-50.0, 1), (50.0, -1)):
        loss, data = built(target_entropy=target), windows()
        (slope,) = torch.autograd.grad(loss(data)["loss_alpha"], loss.log_alpha)
        assert slope * sign > 0


def test_range_of_alpha() -> None:
    loss, data = built(min_alpha=0.5, max_alpha=2.0), windows()
    for log_alpha, alpha in ((3.0, 2.0), (-3.0, 0.5), (0.1, math.exp(0.1))):
        loss.log_alpha.data.fill_(log_alpha)
        out = loss(data)
        assert_close(out["alpha"], alpha)
        assert_close(loss.log_alpha.exp(), alpha)  # what is held moves, too
        (slope,) = torch.autograd.grad(out["loss_alpha"], loss.log_alpha)
        assert_close(slope, out["loss_alpha"].detach())
        assert_close(out["loss_alpha"], alpha * (out["entropy"] - TARGET))


def test_range_of_bound_alpha() -> None:
    """Where parameters are bound nothing is moved; alpha is read within its range, and its loss
    keeps a slope that leads back."""
    loss, data = built(min_alpha=0.5, max_alpha=2.0), windows()
    log_alpha = torch.tensor(3.0, requires_grad=True)
    with loss.bind({**loss.tensors(), "log_alpha": log_alpha}):
        out = loss(data)
    assert_close(out["alpha"], 2.0)
    assert_close(log_alpha, 3.0)
    (slope,) = torch.autograd.grad(out["loss_alpha"], log_alpha)
    assert_close(slope, 2.0 * (out["entropy"] - TARGET))


def test_automatic_target() -> None:
    assert OnlineDTLoss(cases.stochastic_window()).target_entropy.item() == -ACT
    actor = cases.stochastic_window()
    actor.spec = None
    with pytest.raises(RuntimeError, match="target_entropy='auto' needs"):
        OnlineDTLoss(actor)


def test_recorded_actions_with_gradient_are_refused() -> None:
    data = windows()
    data["action"] = data["action"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="recorded actions require gradient"):
        built()(data)


def test_renamed_target() -> None:
    loss, data, tape = built(), windows(), calm()
    expected = slow(loss, data, tape[0])["score"]
    loss.set_keys(action_target="recorded")
    assert set(loss.in_keys) == {*KEYS, "recorded"}
    data["recorded"] = data["action"].clone()
    assert_close(taped(tape, loss, data)["loss_log_likelihood"], -expected.mean())
    data["recorded"] = data["recorded"] * 0.5
    assert taped(tape, loss, data)["loss_log_likelihood"] != -expected.mean()


def test_defaults_are_upstreams() -> None:
    loss = OnlineDTLoss(cases.stochastic_window())
    assert (loss.samples_mc_entropy, loss.fixed_alpha, loss.reduction) == (1, False, "mean")
    assert_close(loss.alpha_init, 1.0)
    assert (loss.min_log_alpha, loss.max_log_alpha) == (None, None)
