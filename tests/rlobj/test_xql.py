"""XQLLoss against loops, slopes and the soft maximum that Gumbel regression finds.

The reference is Garg et al. 2023 (section 3) with the clipping and rescaling of the authors' code.
"""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rlobj import LossModule, XQLLoss
from rlobj.specs import Bounded
from tests.rlobj import cases
from tests.rlobj.cases import ACT, HIGH, LOW, assert_close, gaussian, linear, numbers, rows, taped

GAMMA, BETA, CLIP, AWR, CAP, SAMPLES = 0.9, 0.8, 1.2, 4.0, 100.0, 3
SETTINGS = {"beta": BETA, "max_clip": CLIP, "temperature": AWR}


def built(**kwargs: object) -> LossModule:
    loss = XQLLoss(
        cases.stochastic(gaussian=True), cases.critic(), cases.value(), **{**SETTINGS, **kwargs}
    )
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def slow_value(
    loss: LossModule, data: TensorDict, tape: list[Tensor], clip: float | None, rescale: bool
) -> list[float]:
    """``exp(z) - z - 1``, z cut off at ``clip``, over ``exp(max z)`` of all that is regressed."""
    v = numbers(loss, "value_network_params")[0]
    target = numbers(loss, "target_qvalue_network_params")
    errors: list[list[float]] = []
    for i, row in enumerate(rows(data)):
        actions = [row["a"]]
        for u in tape[0][:, i].tolist() if tape else []:
            actions.append([w + (h - w) * x for w, h, x in zip(LOW, HIGH, u, strict=True)])
        here, errors = linear(v, row["s"])[0], [*errors, []]
        for a in actions:
            z = (min(linear(q, row["s"], a)[0] for q in target) - here) / BETA
            errors[-1].append(z if clip is None else min(z, clip))
    top = max(max(z) for z in errors) if rescale else 0.0
    assert not rescale or top > -1
    terms = [[(math.exp(z) - z - 1) / math.exp(top) for z in per] for per in errors]
    return [sum(per) / len(per) for per in terms]


@pytest.mark.parametrize("samples", [0, SAMPLES])
@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("rescale", [True, False])
def test_value_by_loop(samples: int, clip: float | None, rescale: bool) -> None:
    loss = built(num_random=samples, max_clip=clip, rescale=rescale, reduction="none")
    data = cases.batch(n=16)
    tape = [torch.rand(samples, 16, ACT)] if samples else []
    expected = slow_value(loss, data, tape, clip, rescale)
    assert slow_value(loss, data, tape, None, rescale) != expected or clip is None
    value, info = taped(tape, loss.value_loss, data)
    assert_close(value, expected)
    v = numbers(loss, "value_network_params")[0]
    assert_close(info["value"], [linear(v, row["s"])[0] for row in rows(data)])
    assert not info["value"].requires_grad


class Given(nn.Module):
    """Q(s, a) = a."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.weight * action


class Constant(nn.Module):
    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, observation: Tensor) -> Tensor:
        return self.at.expand(*observation.shape[:-1], 1)


def by_hand(actions: list[float], at: float, **kwargs: object) -> tuple[LossModule, TensorDict]:
    critic = cases.ValueOperator(Given(), ["observation", "action"])
    loss = XQLLoss(
        cases.stochastic(gaussian=True), [critic, critic], cases.ValueOperator(Constant(at)),
        **kwargs,
    )  # fmt: skip
    loss.mark_updated()
    n = len(actions)
    data = {"observation": torch.zeros(n, 1), "action": torch.tensor(actions).unsqueeze(-1)}
    return loss, TensorDict(data, [n])


def test_value_by_hand() -> None:
    """V = 1, beta = 2; Q = 3, 1, -3, 9: z = 1, 0, -2, 4, cut off at 2.5."""
    e = [math.e - 2, 0.0, math.exp(-2) + 1, math.exp(2.5) - 3.5]
    actions, settings = [3.0, 1.0, -3.0, 9.0], {"beta": 2.0, "max_clip": 2.5}
    loss, data = by_hand(actions, 1.0, rescale=False, **settings, reduction="none")
    assert_close(loss.value_loss(data)[0], e)
    assert_close(
        loss.value_loss(data)[0], [0.7182818284590451, 0.0, 1.1353352832366128, 8.68249396]
    )
    loss, data = by_hand(actions, 1.0, **settings, reduction="none")
    assert_close(loss.value_loss(data)[0], [x / math.exp(2.5) for x in e])
    # the offset is -1 at least: z = -2 and -4 alone
    loss, data = by_hand([-3.0, -7.0], 1.0, **settings, reduction="none")
    expected = [math.e * (math.exp(-2) + 1), math.e * (math.exp(-4) + 3)]
    assert_close(loss.value_loss(data)[0], expected)


def test_uniform_actions_by_hand() -> None:
    """As above, with one uniform action per state: 5 and -3, z = 2 and -2, whose 2 sets the
    scale."""
    box = Bounded(-10.0, 10.0, (1,))
    loss, data = by_hand([3.0, 1.0], 1.0, beta=2.0, num_random=1, action_spec=box, reduction="none")
    value = taped([torch.tensor([[[0.75], [0.35]]])], loss.value_loss, data)[0]
    sums = [math.e - 2 + math.exp(2) - 3, 0.0 + math.exp(-2) + 1]
    assert_close(value, [x / 2 / math.exp(2) for x in sums])


def test_masked_samples_do_not_set_the_scale() -> None:
    loss, data = by_hand([3.0, 1.0, 9.0], 1.0, beta=2.0, reduction="none")
    data["collector", "mask"] = torch.tensor([True, True, False])
    assert_close(loss.value_loss(data)[0][:2], [(math.e - 2) / math.e, 0.0])


@pytest.mark.parametrize("rescale", [True, False])
def test_regression_finds_the_soft_maximum(rescale: bool) -> None:
    """The minimum over V is ``beta log mean exp(Q / beta)``."""
    actions, beta = [0.3, -1.0, 2.0, 1.1], 0.7
    soft = beta * math.log(sum(math.exp(q / beta) for q in actions) / 4)
    for at, sign in ((soft - 0.01, -1), (soft, 0), (soft + 0.01, 1)):
        loss, data = by_hand(actions, at, beta=beta, rescale=rescale)
        v = dict(loss.named_parameters())["value_network_params.module.at"]
        (slope,) = torch.autograd.grad(loss.value_loss(data)[0].sum(), v)
        assert slope.item() == pytest.approx(0, abs=1e-12) if sign == 0 else slope * sign > 0


def test_no_gradient_above_the_clip_nor_through_the_scale() -> None:
    """d/dV (e^z - z - 1) / e^m = (1 - e^z) / (beta e^m), for z below the clip; m is a constant."""
    loss, data = by_hand([3.0, 9.0, -3.0], 1.0, beta=2.0, max_clip=2.5, reduction="none")
    v = dict(loss.named_parameters())["value_network_params.module.at"]
    slopes = [torch.autograd.grad(loss.value_loss(data)[0][i], v)[0].item() for i in range(3)]
    top = math.exp(2.5)
    assert_close(torch.tensor(slopes), [(1 - math.e) / 2 / top, 0.0, (1 - math.exp(-2)) / 2 / top])


def slow(loss: LossModule, data: TensorDict, kind: str) -> dict[str, list[float]]:
    """Actor and critic terms one sample at a time."""
    actor = numbers(loss, "actor_network_params")[0]
    v = numbers(loss, "value_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    out: dict[str, list[float]] = {"actor": [], "qvalue": [], "td_error": [], "log_prob": []}
    met = set()
    for row in rows(data):
        u = min(linear(q, row["s"], row["a"])[0] for q in target) - linear(v, row["s"])[0]
        log_prob = cases.normal_log_density(row["a"], *gaussian(actor, row["s"]))
        out["log_prob"].append(log_prob)
        out["actor"].append(-min(math.exp(AWR * u), CAP) * log_prob)
        goal = row["r"] + (0.0 if row["end"] else GAMMA * linear(v, row["s2"])[0])
        now = [linear(q, row["s"], row["a"])[0] for q in online]
        out["qvalue"].append(sum(error(kind, q, goal) for q in now))
        out["td_error"].append(max((q - goal) ** 2 for q in now))
        met |= {("capped", math.exp(AWR * u) > CAP), ("end", row["end"])}
        met |= {("far", abs(q - goal) > 20) for q in now}
    assert len(met) == 6, "the batch does not exercise every branch"
    return out


def error(kind: str, a: float, b: float) -> float:
    if kind != "huber":
        return cases.distance(kind, a, b)
    gap = abs(a - b)
    return gap * gap / 2 if gap <= 20 else 20 * (gap - 10)


def far_rewards(n: int = 24) -> TensorDict:
    data = cases.batch(n=n)
    data["next", "reward"][::3] *= 20
    return data


@pytest.mark.parametrize("kind", ["huber", "l1", "l2", "smooth_l1"])
def test_actor_and_critics_by_loop(kind: str) -> None:
    loss, data = built(loss_function=kind, reduction="none"), far_rewards()
    expected = slow(loss, data, kind)
    assert_close(loss.actor_loss(data)[0], expected["actor"])
    value, info = loss.qvalue_loss(data)
    assert_close(value, expected["qvalue"])
    assert_close(info["td_error"].max(0).values, expected["td_error"])


def test_forward_reduces_terms_and_writes_priority() -> None:
    loss, data = built(num_random=SAMPLES), far_rewards()
    tape = [torch.rand(SAMPLES, 24, ACT)]
    out, expected = taped(tape, loss, data), slow(loss, data, "huber")
    expected["value"] = slow_value(loss, data, tape, CLIP, rescale=True)
    for name in ("actor", "qvalue", "value"):
        assert_close(out[f"loss_{name}"], sum(expected[name]) / 24)
    assert_close(out["entropy"], -sum(expected["log_prob"]) / 24)
    assert_close(data["td_error"].flatten(), expected["td_error"])


@pytest.mark.parametrize("term", ["actor", "qvalue", "value"])
def test_gradients(term: str) -> None:
    """Away from the clip, whose slope a difference cannot see; the scale is held."""
    loss, data = built(num_random=2, max_clip=None, rescale=False), far_rewards(6)
    method, tape = getattr(loss, f"{term}_loss"), [torch.rand(2, 6, ACT)]
    cases.check_gradient(loss, lambda: taped(tape, method, data)[0], f"{term}_network_params")


def test_windows_of_time() -> None:
    loss, flat, u = built(num_random=2, reduction="none"), cases.batch(n=6), torch.rand(2, 6, ACT)
    value = taped([u], loss.value_loss, flat)[0]
    shaped = taped([u.reshape(2, 2, 3, ACT)], loss.value_loss, flat.reshape(2, 3))[0]
    assert_close(shaped.reshape(6), value.detach())


def test_bounds_of_uniform_actions() -> None:
    nets = (cases.stochastic(), cases.critic(), cases.value())
    assert_close(XQLLoss(*nets, num_random=1).low, LOW)
    wide = XQLLoss(*nets, num_random=1, action_spec=Bounded(-3.0, 7.0, (ACT,)))
    assert_close(wide.high, [7.0, 7.0])
    assert not hasattr(XQLLoss(*nets), "low")
    nets[0].spec = None
    with pytest.raises(ValueError, match="has no bounds"):
        XQLLoss(*nets, num_random=1)


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_beta_is_checked(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be positive"):
        built(beta=beta)


def test_defaults_are_the_authors() -> None:
    loss = XQLLoss(cases.stochastic(), cases.critic(), cases.value())
    assert (loss.beta, loss.temperature, loss.max_clip) == (1.0, 3.0, 7.0)
    assert (loss.rescale, loss.num_random, loss.loss_function) == (True, 0, "huber")
    assert loss.tensors()["qvalue_network_params.module.linear.weight"].shape[0] == 2


def test_settings_reach_the_loss() -> None:
    loss = built(num_qvalue_nets=3, reduction="none", deactivate_vmap=True, separate_losses=True,
                 scalar_output_mode="non_tensor")  # fmt: skip
    assert (loss.reduction, loss.deactivate_vmap) == ("none", True)
    assert loss.scalar_output_mode == "non_tensor"
    assert loss.tensors()["qvalue_network_params.module.linear.weight"].shape[0] == 3
    body = nn.Linear(cases.OBS, 1)
    shared = XQLLoss(
        cases.Actor(body), cases.critic(), cases.ValueOperator(body), separate_losses=True
    )
    assert not shared.value_network_params["module", "weight"].requires_grad
