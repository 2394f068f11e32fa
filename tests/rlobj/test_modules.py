"""Distributions against a numerical change of variables; networks; specs; the noise door."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    TensorDictModule,
    set_interaction_type,
)
from torch import Tensor, nn

from rlobj import noise
from rlobj.modules import (
    MLP,
    Actor,
    Delta,
    Dropout,
    IndependentNormal,
    ProbabilisticActor,
    SafeModule,
    TanhDelta,
    TanhNormal,
    TruncatedNormal,
    ValueOperator,
    rsample_and_log_prob,
)
from rlobj.specs import Bounded, Composite, bounds
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
    assert_close(TanhDelta(torch.zeros(1), low=0.0, high=4.0).mode, [2.0])
    far = torch.tensor([[30.0, -30.0]])
    assert_close(TanhDelta(far).mode, [[1 - 1e-6, 1e-6 - 1]])
    assert_close(TanhDelta(far, safe=False).mode, [[1.0, -1.0]])


def test_axes_of_an_event() -> None:
    """One log-probability per event, whose entries' log-densities add up."""
    loc = torch.randn(2, 3, 4)
    x = loc + 0.3
    each = -0.5 * (0.3 / 0.7) ** 2 - math.log(0.7 * math.sqrt(2 * math.pi))
    for dims, shape in ((0, (2, 3, 4)), (1, (2, 3)), (2, (2,))):
        dist = IndependentNormal(loc, 0.7, event_dim=dims)
        assert_close(dist.log_prob(x), torch.full(shape, each * loc.numel() / math.prod(shape)))
        assert dist.entropy().shape == shape
        squashed = TanhNormal(loc, lambda at: torch.full_like(at, 0.7), event_dims=dims)
        _, log_prob = squashed.rsample_and_log_prob((5,))
        assert log_prob.shape == (5, *shape)
        point = TanhDelta(loc, event_dims=dims)
        assert (point.batch_shape, point.event_shape) == (shape, loc.shape[len(shape) :])
        assert point.log_prob(loc.tanh()).shape == shape
    assert TanhNormal(torch.tensor(0.0), 1.0).log_prob(torch.tensor(0.0)).shape == ()
    assert Delta(loc, batch_shape=(2,), event_shape=(3, 4)).log_prob(loc).shape == (2,)
    assert Delta(loc, batch_shape=(2, 3, 4)).log_prob(loc).shape == (2, 3, 4)


@pytest.mark.parametrize("cls", [TanhNormal, TanhDelta, TruncatedNormal])
def test_bounds_in_order(cls: type) -> None:
    scale = [] if cls is TanhDelta else [torch.ones(1)]
    with pytest.raises(RuntimeError, match=f"{cls.__name__} needs low < high, got 1.0 and 1.0"):
        cls(torch.zeros(1), *scale, low=1.0, high=1.0)
    cls(torch.zeros(1), *scale, low=torch.ones(1), high=-torch.ones(1))  # tensors: not looked at


def test_probabilistic_actor_obeys_the_interaction_type() -> None:
    net = TensorDictModule(lambda x: (x, torch.ones_like(x)), ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(net, ["loc", "scale"], distribution_class=TanhNormal)
    data = TensorDict({"observation": torch.tensor([[0.3]])}, [1])
    with set_interaction_type(InteractionType.DETERMINISTIC):
        assert_close(actor(data.clone())["action"], [[math.tanh(0.3)]])
    with set_interaction_type(InteractionType.RANDOM):
        sample = taped([torch.tensor([[2.0]])], actor, data)["action"]
        assert_close(sample, [[math.tanh(2.3)]])


def gaussian_net() -> TensorDictModule:
    return TensorDictModule(
        lambda x: (x, torch.ones_like(x)), ["observation"], ["loc", "scale"]
    )  # fmt: skip


def test_specs_of_actors() -> None:
    """One spec is the action's; ``spec`` names every output, None where nothing is known."""
    box = Bounded(LOW, HIGH)
    actor = Actor(nn.Linear(3, 2), out_keys=["move"], spec=box)
    assert actor.spec["move"] is box
    assert not actor.safe
    stochastic = ProbabilisticActor(gaussian_net(), ["loc", "scale"], spec=box)
    assert stochastic.spec["action"] is box
    assert (stochastic.spec["loc"], stochastic.spec["scale"]) == (None, None)
    assert Actor(nn.Linear(3, 2)).spec["action"] is None
    two = Actor(nn.Identity(), out_keys=["action", "extra"], spec=box)
    assert two.spec["action"] is box
    assert two.spec["extra"] is None
    given = Composite(action=box)
    assert Actor(nn.Linear(3, 2), spec=given).spec["action"] is box
    with pytest.raises(RuntimeError, match="one spec for the outputs"):
        SafeModule(nn.Identity(), ["x"], ["y", "z"], spec=box)
    with pytest.raises(RuntimeError, match="which are not among the outputs"):
        SafeModule(nn.Identity(), ["x"], ["y"], spec=given)
    with pytest.raises(RuntimeError, match="safe=True needs a spec"):
        Actor(nn.Identity(), safe=True)


@pytest.mark.parametrize("cls", [Actor, ProbabilisticActor])
def test_safe_actors_stay_within_their_spec(cls: type) -> None:
    far = torch.tensor([[9.0, -9.0], [0.1, -0.2]])
    if cls is Actor:
        free, safe = (Actor(nn.Identity(), spec=Bounded(LOW, HIGH), safe=s) for s in (False, True))
    else:
        free, safe = (
            ProbabilisticActor(
                gaussian_net(), ["loc", "scale"], distribution_class=IndependentNormal,
                spec=Bounded(LOW, HIGH), safe=s,
            )
            for s in (False, True)
        )  # fmt: skip
    data = TensorDict({"observation": far}, [2])
    assert_close(free(data.clone())["action"], far)
    assert_close(safe(data.clone())["action"], [[1.0, -2.0], [0.1, -0.2]])
    named = safe(observation=far)
    action = named[-1] if isinstance(named, tuple) else named
    assert_close(action, [[1.0, -2.0], [0.1, -0.2]])


def test_actor_of_several_actions() -> None:
    net = TensorDictModule(
        lambda x: (x, torch.ones_like(x), x), ["observation"],
        [("params", "a", "loc"), ("params", "a", "scale"), ("params", "b", "param")],
    )  # fmt: skip
    kinds = {"a": IndependentNormal, "b": TanhDelta}
    actor = ProbabilisticActor(
        net, ["params"], distribution_class=CompositeDistribution,
        distribution_kwargs={"distribution_map": kinds},
    )  # fmt: skip
    out = actor(TensorDict({"observation": LOC}))
    assert_close(out["a"], LOC)
    assert_close(out["b"], LOC.tanh())
    with pytest.raises(KeyError, match="distribution_map"):
        ProbabilisticActor(net, ["params"], distribution_class=CompositeDistribution)


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
     ({"depth": 2, "num_cells": 4}, [(4, 3), (4, 4), (2, 4)]), ({}, [(2, 3)]),
     ({"depth": 0}, [(2, 3)]), ({"num_cells": []}, [(2, 3)])],
)  # fmt: skip
def test_mlp_layers(settings: dict, sizes: list) -> None:
    layers = [m for m in MLP(3, 2, **settings) if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in layers] == sizes


def test_mlp_computes_what_its_layers_do() -> None:
    net, x, y = MLP(3, 2, num_cells=[4], activation_class=nn.ReLU), torch.randn(5, 1), None
    y = torch.randn(5, 2)
    hidden = (torch.cat([x, y], -1) @ net[0].weight.T + net[0].bias).clamp(min=0)
    assert_close(net(x, y), hidden @ net[2].weight.T + net[2].bias)


def test_mlp_options() -> None:
    ends = MLP(
        3, 2, num_cells=[4], activate_last_layer=True, dropout=0.5, norm_class=nn.LayerNorm,
        norm_kwargs=[{"normalized_shape": 4}, {"normalized_shape": 2, "eps": 0.1}],
        activation_class=nn.LeakyReLU, activation_kwargs={"negative_slope": 0.3},
    )  # fmt: skip
    kinds = [type(m) for m in ends]
    assert kinds == [nn.Linear, nn.Dropout, nn.LayerNorm, nn.LeakyReLU] * 2
    assert (ends[0].weight.shape, ends[2].eps, ends[6].eps) == ((4, 3), 1e-5, 0.1)
    assert ends[7].negative_slope == 0.3
    assert MLP(3, 2, num_cells=[4], bias_last_layer=False)[-1].bias is None
    bare = MLP(3, 2, num_cells=[4], layer_kwargs={"bias": False})
    assert [m.bias for m in bare if isinstance(m, nn.Linear)] == [None, None]


def test_mlp_shapes() -> None:
    x = torch.randn(5, 3)
    net = MLP(out_features=(2, 3), num_cells=[4], single_bias_last_layer=True)
    assert net(x).shape == (5, 2, 3)
    assert net[0].weight.shape == (4, 3)
    assert net[-2].bias is None
    net[-1].bias.data.fill_(0.5)
    assert_close(net(x).flatten(1), (net[0](x).tanh() @ net[2].weight.T + 0.5).detach())


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [({"out_features": None}, ValueError, "needs out_features"),
     ({"num_cells": 4}, RuntimeError, "needs depth"),
     ({"num_cells": [4], "depth": 2}, RuntimeError, "of depth 2 has not the hidden layers"),
     ({"norm_kwargs": [{}, {}], "num_cells": [4]}, ValueError, "norm_kwargs: 2 given for 1"),
     ({"in_features": None, "layer_class": nn.Bilinear}, ValueError, "in_features can be left")],
)  # fmt: skip
def test_mlp_refuses(settings: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        MLP(**{"in_features": 3, "out_features": 2, **settings})


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
