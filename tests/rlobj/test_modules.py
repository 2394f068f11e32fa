"""Distributions against a numerical change of variables; networks; specs; the noise door."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
from torch import Tensor, nn

from rlobj import noise
from rlobj.modules import (
    MLP,
    Actor,
    Delta,
    Dropout,
    IndependentNormal,
    ProbabilisticActor,
    TanhDelta,
    TanhNormal,
    ValueOperator,
    rsample_and_log_prob,
)
from rlobj.specs import Bounded, bounds
from tests.rlobj.cases import assert_close, taped

LOC, SCALE, LOW, HIGH = torch.tensor(
    [[0.3, -0.8], [0.5, 1.2], [-1.0, -2.0], [1.0, 0.5]], dtype=torch.float64
)


def tanh_normal(**kwargs: object) -> TanhNormal:
    return TanhNormal(LOC, SCALE, **{"low": LOW, "high": HIGH, **kwargs})


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.8, 0.99])
def test_tanh_density_is_the_slope_of_its_distribution_function(share: float) -> None:
    """P(action <= a) = Phi((atanh(2 (a - low) / (high - low) - 1) - loc) / scale) per dimension."""
    action, eps, expected = LOW + share * (HIGH - LOW), 1e-6, 0.0
    for a, m, s, w, h in zip(*(x.tolist() for x in (action, LOC, SCALE, LOW, HIGH)), strict=True):
        ends = [math.atanh(2 * (a + d - w) / (h - w) - 1) for d in (-eps, eps)]
        below, above = (normal_cdf((x - m) / s) for x in ends)
        expected += math.log((above - below) / (2 * eps))
    found = tanh_normal().log_prob(action).item()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_tanh_density_integrates_to_one() -> None:
    grid = torch.linspace(0, 1, 401)[:-1] + 1 / 800
    points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    density = tanh_normal().log_prob(LOW + (HIGH - LOW) * points).exp()
    assert density.mean().item() * (HIGH - LOW).prod().item() == pytest.approx(1, abs=3e-3)


def test_tanh_sample_and_its_density_agree() -> None:
    eps = torch.randn(7, 2)
    value, log_prob = taped([eps], tanh_normal().rsample_and_log_prob, (7,))
    assert_close(value, LOW + (HIGH - LOW) * ((LOC + SCALE * eps).tanh() + 1) / 2)
    torch.testing.assert_close(log_prob, tanh_normal().log_prob(value), rtol=1e-6, atol=1e-6)
    assert log_prob.shape == (7,)
    assert_close(taped([eps], tanh_normal().rsample, (7,)), value)


@pytest.mark.parametrize("far", [20.0, 300.0, -300.0])
def test_tanh_far_out_is_finite_and_right(far: float) -> None:
    """Where 1 - tanh(x)^2 is 0 in floating point: log(1 - tanh(x)^2) = log 4 - 2 |x|."""
    loc = torch.full((1, 1), far, requires_grad=True)
    dist = TanhNormal(loc, torch.ones(1, 1))
    value, log_prob = taped([torch.zeros(1, 1)], dist.rsample_and_log_prob)
    expected = -0.5 * math.log(2 * math.pi) - (math.log(4) - 2 * abs(far))
    assert_close(log_prob, [expected])
    assert value.abs().item() == pytest.approx(1 - 1e-6, abs=1e-12)
    (slope,) = torch.autograd.grad(log_prob.sum(), loc)
    assert_close(slope, [[math.copysign(2.0, far)]])


@pytest.mark.parametrize("at_the_bound", [LOW, HIGH])
def test_tanh_density_of_a_stored_action_on_the_bound_is_finite(at_the_bound: Tensor) -> None:
    assert tanh_normal().log_prob(at_the_bound).isfinite()
    assert tanh_normal(safe_tanh=False).log_prob(at_the_bound).isfinite()


def test_tanh_of_location() -> None:
    """tanh_loc keeps the location within +-upscale."""
    for cls in (TanhNormal, IndependentNormal):
        dist = cls(torch.tensor([[8.0]]), torch.ones(1, 1), upscale=2.0, tanh_loc=True)
        assert_close(dist.loc, [[2 * math.tanh(4.0)]])


def test_tanh_deterministic_sample_and_gradient() -> None:
    dist = tanh_normal()
    expected = LOW + (HIGH - LOW) * (LOC.tanh() + 1) / 2
    assert_close(dist.deterministic_sample, expected)
    assert_close(dist.mode, expected)
    loc = LOC.clone().requires_grad_()
    assert TanhNormal(loc, SCALE).rsample().requires_grad
    assert not TanhNormal(loc, SCALE).sample().requires_grad


def test_gaussian_density_and_entropy() -> None:
    dist = IndependentNormal(LOC, SCALE)
    x = torch.tensor([0.1, 0.4])
    z = [(0.1 - 0.3) / 0.5, (0.4 + 0.8) / 1.2]
    log_density = sum(-v * v / 2 for v in z) - math.log(0.5 * 1.2) - math.log(2 * math.pi)
    assert_close(dist.log_prob(x), log_density)
    # entropy of a Gaussian: log(sigma sqrt(2 pi e)) per dimension
    assert_close(dist.entropy(), math.log(0.6) + math.log(2 * math.pi * math.e))
    for action in (dist.mean, dist.mode, dist.deterministic_sample):
        assert_close(action, LOC)
    eps = torch.randn(3, 2)
    value, log_prob = taped([eps], rsample_and_log_prob, dist, (3,))
    assert_close(value, LOC + SCALE * eps)
    assert_close(log_prob, dist.log_prob(value))


def test_other_distributions_are_sampled_in_two_steps() -> None:
    dist = torch.distributions.Normal(LOC, SCALE)
    value, log_prob = rsample_and_log_prob(dist, (3,))
    assert_close(log_prob, dist.log_prob(value))


def test_point_masses() -> None:
    at = torch.tensor([[0.5, 1.0]])
    dist = Delta(at)
    assert dist.log_prob(at + 1e-9).item() == 0
    assert dist.log_prob(at + torch.tensor([0.0, 0.1])).item() == -math.inf
    assert_close(dist.rsample((2,)), torch.stack([at, at]))
    for action in (dist.mean, dist.mode, dist.deterministic_sample):
        assert_close(action, at)
    squashed = TanhDelta(at, low=LOW, high=HIGH).mode
    assert_close(squashed, LOW + (HIGH - LOW) * (at.tanh() + 1) / 2)


def test_probabilistic_actor_obeys_the_interaction_type() -> None:
    net = TensorDictModule(lambda x: (x, torch.ones_like(x)), ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(net, ["loc", "scale"], distribution_class=TanhNormal)
    data = TensorDict({"observation": torch.tensor([[0.3]])}, [1])
    with set_interaction_type(InteractionType.DETERMINISTIC):
        assert_close(actor(data.clone())["action"], [[math.tanh(0.3)]])
    with set_interaction_type(InteractionType.RANDOM):
        sample = taped([torch.tensor([[2.0]])], actor, data)["action"]
        assert_close(sample, [[math.tanh(2.3)]])


def test_default_keys_of_actors_and_values() -> None:
    assert (Actor(nn.Linear(1, 1)).in_keys, Actor(nn.Linear(1, 1)).out_keys) == (
        ["observation"],
        ["action"],
    )
    assert ValueOperator(nn.Linear(1, 1)).out_keys == ["state_value"]
    q = ValueOperator(nn.Linear(1, 1), in_keys=["observation", "action"])
    assert q.out_keys == ["state_action_value"]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [({"num_cells": [5, 6]}, [(5, 3), (6, 5), (2, 6)]), ({"depth": 1}, [(32, 3), (2, 32)]),
     ({}, [(32, 3), (32, 32), (32, 32), (2, 32)]), ({"depth": 0}, [(2, 3)]),
     ({"num_cells": []}, [(2, 3)])],
)  # fmt: skip
def test_mlp_layers(settings: dict, sizes: list) -> None:
    layers = [m for m in MLP(3, 2, **settings) if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in layers] == sizes


def test_mlp_computes_what_its_layers_do() -> None:
    net, x, y = MLP(3, 2, num_cells=[4], activation_class=nn.ReLU), torch.randn(5, 1), None
    y = torch.randn(5, 2)
    hidden = (torch.cat([x, y], -1) @ net[0].weight.T + net[0].bias).clamp(min=0)
    assert_close(net(x, y), hidden @ net[2].weight.T + net[2].bias)
    ends = MLP(3, 2, num_cells=[4], activate_last_layer=True, norm_class=nn.LayerNorm, dropout=0.5)
    kinds = [type(m) for m in ends]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Dropout] * 2
    assert MLP(3, 2, num_cells=[4], bias_last_layer=False)[-1].bias is None


def test_dropout() -> None:
    drop, x = Dropout(0.25), torch.ones(4)
    kept = taped([torch.tensor([0.0, 0.2, 0.25, 0.9])], drop, x)
    assert_close(kept, [0.0, 0.0, 4 / 3, 4 / 3])
    assert_close(drop.eval()(x), x)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        Dropout(1.0)


def test_spec() -> None:
    box = Bounded(-1.0, torch.tensor([1.0, 3.0]))
    assert box.shape == (2,)
    assert_close(taped([torch.tensor([[0.25, 0.5]])], box.rand, (1,)), [[-0.5, 1.0]])
    assert_close(box.project(torch.tensor([-9.0, 2.0])), [-1.0, 2.0])
    assert box.is_in(torch.tensor([1.0, 3.0]))
    assert not box.is_in(torch.tensor([0.0, 3.1]))
    assert not box.is_in(torch.tensor([-1.1, 0.0]))
    for low, high, message in ((None, 1.0, "both low and high"), (2.0, 1.0, "low exceeds high")):
        with pytest.raises(ValueError, match=message):
            Bounded(low, high)


def test_bounds_of_other_specs() -> None:
    class Space:
        low, high = LOW, HIGH

    class Theirs:
        space = Space()

    for found in (Bounded(LOW, HIGH), Theirs(), {"action": Theirs()}):
        low, high = bounds(found)
        assert_close(low, LOW)
        assert_close(high, HIGH)


def test_noise_sources() -> None:
    like, recorder = torch.zeros(1, dtype=torch.float32), noise.Recorder()
    with noise.using(recorder):
        assert not noise.normal((2, 3), like).any()
        noise.uniform((4,), like)
        with noise.using(None):
            assert noise.normal((3,), like).any()
        noise.normal((), torch.zeros(()))
    kinds = [(d.kind, d.shape, d.dtype) for d in recorder.draws]
    assert kinds == [
        ("normal", (2, 3), torch.float32),
        ("uniform", (4,), torch.float32),
        ("normal", (), torch.float64),
    ]
    sample = recorder.draws[1].sample(torch.Generator().manual_seed(0), "cpu", 1000)
    assert sample.shape == (1000, 4)
    assert 0 <= sample.min() < 0.1 < 0.9 < sample.max() < 1
    assert noise.normal((1000,), like).min() < 0 <= noise.uniform((1000,), like).min()


@pytest.mark.parametrize("tape", [[], [torch.zeros(3)]])
def test_tape_refuses_what_it_does_not_hold(tape: list) -> None:
    with pytest.raises(RuntimeError, match=r"the noise tape holds .* where the loss draws \(2,\)"):
        taped(tape, noise.normal, (2,), torch.zeros(1))


def test_source_is_restored_after_an_error() -> None:
    with pytest.raises(KeyError), noise.using(noise.Tape([])):
        raise KeyError
    assert noise.normal((2,), torch.zeros(1)).shape == (2,)
