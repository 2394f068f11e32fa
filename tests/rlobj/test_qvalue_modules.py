"""Greedy policies, one-hot and truncated distributions."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
from torch import Tensor, nn

from rlobj.modules import (
    DistributionalDQNnet,
    DistributionalQValueActor,
    DistributionalQValueModule,
    OneHotCategorical,
    QValueActor,
    QValueHook,
    QValueModule,
    ReparamGradientStrategy,
    TruncatedNormal,
)
from rlobj.specs import Binary, Categorical, Composite, MultiOneHot, OneHot
from tests.rlobj import cases, discrete
from tests.rlobj.cases import taped


def assert_close(actual: Tensor, expected: object) -> None:
    cases.assert_close(actual.double(), expected)


VALUES = torch.tensor([[1.0, -2.0, 3.0, 0.5, 3.0], [-1.0, -2.0, -3.0, -0.5, -4.0]]).double()
GREEDY = {
    "one_hot": ([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], [3.0, -0.5]),
    "categorical": ([2, 3], [3.0, -0.5]),
    "mult_one_hot": ([[1, 0, 1, 0, 0], [1, 0, 0, 1, 0]], [4.0, -1.5]),
    "binary": ([[1, 0, 1, 1, 1], [0, 0, 0, 0, 0]], [7.5, 0.0]),
}


@pytest.mark.parametrize("space", GREEDY)
def test_greedy_actions_by_hand(space: str) -> None:
    """The first of two equal values wins; widths 2 and 3 of the composed action."""
    action, chosen = GREEDY[space]
    module = QValueModule(space, var_nums=[2, 3])
    found = module(VALUES)
    assert_close(found[0], action)
    assert_close(found[1], VALUES)
    assert_close(found[2], torch.tensor(chosen).unsqueeze(-1))
    td = module(TensorDict({"action_value": VALUES}, [2]))
    assert_close(td["chosen_action_value"].squeeze(-1), chosen)
    assert_close(QValueHook(space, [2, 3])(nn.Identity(), None, VALUES)[0], action)


def test_masked_actions_are_never_taken() -> None:
    module = QValueModule("categorical", action_mask_key="allowed")
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, False, True]])
    td = module(TensorDict({"action_value": VALUES, "allowed": mask}, [2]))
    assert_close(td["action"], [0, 1])
    assert_close(td["chosen_action_value"], [[1.0], [-2.0]])
    assert module.in_keys == ["action_value", "allowed"]
    with pytest.raises(KeyError, match="Action mask key 'allowed' not found"):
        module(TensorDict({"action_value": VALUES}, [2]))
    with pytest.raises(KeyError, match="Action value key 'action_value' not found"):
        module(TensorDict({}, [2]))


def test_actor() -> None:
    actor = QValueActor(nn.Linear(3, 5), spec=MultiOneHot([2, 3]), action_key="move")
    td = actor(TensorDict({"observation": torch.randn(4, 3)}, [4]))
    assert actor.in_keys == ["observation"]
    assert actor.action_space == "mult_one_hot"
    assert actor.spec["move"].is_in(td["move"].bool())
    assert_close(td["chosen_action_value"].squeeze(-1), (td["move"] * td["action_value"]).sum(-1))
    assert list(actor.state_dict()) == ["module.0.module.weight", "module.0.module.bias"]
    body = TensorDictModule(nn.Linear(3, 5), in_keys=["obs"], out_keys=["q"])
    assert QValueActor(body, spec=OneHot(5), action_value_key="q").in_keys == ["obs"]
    with pytest.raises(KeyError, match="'action_value' is not among"):
        QValueActor(body, spec=OneHot(5))
    nested = QValueActor(nn.Linear(3, 5), spec=Composite(action=Categorical(5)))
    assert nested.action_space == "categorical"
    safe = QValueActor(nn.Linear(3, 5), spec=OneHot(5), safe=True)
    assert safe(TensorDict({"observation": torch.randn(4, 3)}, [4]))["action"].dtype == torch.bool


def test_actions_take_the_shape_of_their_spec() -> None:
    """Indices in a column, refused, reshaped or left; a nested spec has its own batch axes."""
    spec, data = Categorical(5, shape=(1,)), TensorDict({"observation": torch.randn(4, 3)}, [4])
    net = nn.Linear(3, 5)
    found = {
        strict: QValueActor(net, spec=spec, strict_shape=strict)(data.clone())
        for strict in ("auto", False)
    }
    assert found["auto"]["action"].shape == (4, 1)
    assert found[False]["action"].shape == (4,)
    assert_close(found["auto"]["chosen_action_value"], found[False]["chosen_action_value"])
    for strict in (True, None):
        with pytest.raises(RuntimeError, match=r"is \(4,\), by its spec it should be \(4, 1\)"):
            QValueActor(net, spec=spec, strict_shape=strict)(data.clone())
    agents = Composite(agents=Composite(action=OneHot(5, shape=(4, 5)), shape=(4,)))
    key = ("agents", "action")
    actor = QValueActor(net, spec=agents, action_key=key)
    assert actor(TensorDict({"observation": torch.randn(2, 4, 3)}, [2]))[key].shape == (2, 4, 5)


def test_errors() -> None:
    with pytest.raises(ValueError, match="action space is unknown"):
        QValueModule()
    with pytest.raises(ValueError, match="needs var_nums"):
        QValueModule("mult-one-hot")
    with pytest.raises(ValueError, match="does not match the spec's"):
        QValueModule("one_hot", spec=Binary(3))
    with pytest.raises(ValueError, match="two different specs"):
        QValueActor(nn.Linear(3, 5), spec=OneHot(5), action_space=OneHot(5))
    with pytest.raises(TypeError, match="spec="):
        QValueModule(OneHot(3))
    with pytest.raises(RuntimeError, match="lack the key"):
        QValueModule("one_hot", out_keys=["action", "q", "v"])
    with pytest.raises(NotImplementedError, match="binary"):
        DistributionalQValueModule("binary", torch.arange(3.0))


def test_distributional_greedy_action_by_hand() -> None:
    """Means: 0.5 * -1 + 0.5 * 2 = 0.5, 1, and 0.1 * -1 + 0.9 * 1 = 0.8; masked: the third."""
    probs = torch.tensor([[0.5, 0.0, 0.1], [0.0, 1.0, 0.9], [0.5, 0.0, 0.0]])
    support = torch.tensor([-1.0, 1.0, 2.0])
    log_probs = (probs + 1e-12).log()
    action, out = DistributionalQValueModule("categorical", support)(log_probs)
    assert_close(action, 1)
    assert_close(out, log_probs)
    masked = DistributionalQValueModule("one_hot", support - 9, action_mask_key="allowed")
    mask = torch.tensor([True, False, True])
    td = masked(TensorDict({"action_value": log_probs, "allowed": mask}, []))
    assert_close(td["action"], [0, 0, 1])
    assert (td["action_value"][:, 1] == torch.finfo(log_probs.dtype).min).all()
    assert_close(td["action_value"][:, [0, 2]], log_probs[:, [0, 2]])
    per_atom = masked(TensorDict({"action_value": log_probs, "allowed": mask.unsqueeze(0)}, []))
    assert_close(per_atom["action"], [0, 0, 1])
    with pytest.raises(RuntimeError, match="3 atoms in"):
        DistributionalQValueModule("one_hot", torch.arange(4.0))(log_probs)


def test_distributional_actor() -> None:
    actor = discrete.c51_actor()
    td = actor(TensorDict({"observation": torch.randn(4, 3)}, [4]))
    assert_close(td["action_value"].exp().sum(-2), torch.ones(4, discrete.ACTIONS))
    assert actor.spec["action"].is_in(td["action"].bool())
    raw = DistributionalQValueActor(
        discrete.Atoms(), torch.arange(discrete.ATOMS), action_space="one_hot",
        make_log_softmax=False,
    )  # fmt: skip
    assert raw.support.is_floating_point()
    assert len(raw.module) == 2
    with pytest.raises(RuntimeError, match=r"\[\*batch, atoms, actions\]"):
        DistributionalDQNnet()(torch.zeros(3))


# one-hot categorical

PROBS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def test_one_hot_numbers() -> None:
    for dist in (OneHotCategorical(probs=4 * PROBS), OneHotCategorical(logits=PROBS.log() + 3)):
        assert_close(dist.probs, PROBS)
        assert_close(dist.log_prob(torch.tensor([0, 0, 1])), math.log(0.3))
        assert_close(dist.log_prob(torch.eye(3).bool()), PROBS.log())
        assert_close(dist.mode, [0, 1, 0])
        assert_close(dist.deterministic_sample, [0, 1, 0])
        assert_close(dist.entropy(), -sum(p * math.log(p) for p in PROBS.tolist()))
    sure = OneHotCategorical(probs=torch.tensor([1.0, 0.0]))
    assert_close(sure.entropy(), 0.0)
    assert sure.sample((100,)).sum(0).tolist() == [100, 0]


def test_one_hot_frequencies() -> None:
    draws = OneHotCategorical(probs=PROBS.expand(2, 3)).sample((8000,))
    assert draws.shape == (8000, 2, 3)
    assert draws.dtype == torch.int64
    assert (draws.sum(-1) == 1).all()
    torch.testing.assert_close(draws.double().mean((0, 1)), PROBS, atol=0.02, rtol=0)


@pytest.mark.parametrize("method", ReparamGradientStrategy)
def test_one_hot_gradients(method: ReparamGradientStrategy) -> None:
    """Pass-through: the probabilities' Jacobian. Relaxed: that of softmax(logits + Gumbel)."""
    logits, u = PROBS.log().requires_grad_(), torch.tensor([0.9, 0.3, 0.6])
    weight = torch.tensor([1.0, -2.0, 5.0])
    sample = taped([u], OneHotCategorical(logits, grad_method=method).rsample)
    scores = [math.log(p) - math.log(-math.log(x)) for p, x in zip(PROBS, u, strict=True)]
    assert_close(sample, [float(s == max(scores)) for s in scores])
    (grad,) = torch.autograd.grad((weight * sample).sum(), logits)
    relaxed = method is ReparamGradientStrategy.RelaxedOneHot
    p = discrete.softmax(scores) if relaxed else PROBS.tolist()
    mean = sum(a * w for a, w in zip(p, weight.tolist(), strict=True))
    assert_close(grad, [a * (w - mean) for a, w in zip(p, weight.tolist(), strict=True)])


@pytest.mark.parametrize("given", [{}, {"logits": PROBS, "probs": PROBS}])
def test_one_hot_takes_one_of_logits_and_probs(given: dict) -> None:
    with pytest.raises(ValueError, match="exactly one of logits and probs"):
        OneHotCategorical(**given)


def test_one_hot_policy_follows_the_sampling_mode() -> None:
    policy, td = discrete.policy(), TensorDict({"observation": torch.randn(3)}, [])
    with set_interaction_type(InteractionType.DETERMINISTIC):
        action = policy(td)["action"]
    assert action.argmax() == td["logits"].argmax()
    with set_interaction_type(InteractionType.RANDOM):
        assert len({int(policy(td)["action"].argmax()) for _ in range(60)}) > 1


# truncated normal


def cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def slow_density(x: float, loc: float, scale: float, low: float, high: float) -> float:
    mass = cdf((high - loc) / scale) - cdf((low - loc) / scale)
    return math.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi) * mass)


@pytest.mark.parametrize(
    ("loc", "scale"),
    [(0.3, 0.5), (-0.9, 2.0), (3.0, 0.7), (-1.5, 1.0), (-4.0, 1.0), (0.1, 0.01)],
)
def test_truncated_density(loc: float, scale: float) -> None:
    dist = TruncatedNormal(torch.tensor([loc]), torch.tensor([scale]), low=-1.0, high=2.0)
    grid = torch.linspace(-1, 2, 60_001)[:-1] + 1.5 / 60_000
    density = dist.log_prob(grid.unsqueeze(-1)).exp()
    assert density.mean().item() * 3 == pytest.approx(1, abs=1e-6)
    assert (density * grid).mean().item() * 3 == pytest.approx(dist.mean.item(), abs=1e-6)
    assert_close(dist.deterministic_sample, dist.mean)
    for x in (-0.99, 0.1, 1.9):
        found = dist.log_prob(torch.tensor([x])).item()
        expected = slow_density(x, loc, scale, -1.0, 2.0)
        if expected > 0:
            assert found == pytest.approx(math.log(expected), rel=1e-6)
    assert dist.log_prob(torch.tensor([2.001])) == -math.inf
    assert_close(dist.mode, [min(max(loc, -1.0), 2.0)])


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.5), (3.0, 0.7), (-1.5, 1.0), (-4.0, 1.0)])
def test_truncated_samples_follow_the_distribution(loc: float, scale: float) -> None:
    """P(X <= x) is the uniform draw itself (above the mean, its mirror image)."""
    u = torch.tensor([[0.01], [0.3], [0.7], [0.99]])
    dist = TruncatedNormal(torch.tensor([loc]), torch.tensor([scale]), low=-1.0, high=2.0)
    found = taped([u], dist.rsample, (4,))
    mass = cdf((2 - loc) / scale) - cdf((-1 - loc) / scale)
    share = [(cdf((x - loc) / scale) - cdf((-1 - loc) / scale)) / mass for x in found[:, 0]]
    mirrored = loc < -1
    expected = [1 - x if mirrored else x for x in u[:, 0].tolist()]
    torch.testing.assert_close(torch.tensor(share), torch.tensor(expected), atol=1e-8, rtol=1e-6)


def test_truncated_gradient_and_extremes() -> None:
    loc, u = torch.tensor([0.3, -0.5], requires_grad=True), torch.tensor([0.2, 0.9])

    def at(x: Tensor) -> Tensor:
        return taped([u], TruncatedNormal(x, torch.tensor([0.5, 0.8])).rsample)

    assert torch.autograd.gradcheck(at, loc)
    far = torch.tensor([1000.0, -1000.0], requires_grad=True)
    dist = TruncatedNormal(far, torch.ones(2))
    sample = taped([u], dist.rsample)
    assert_close(sample, [1.0, -1.0])
    assert dist.log_prob(sample).isfinite()
    (grad,) = torch.autograd.grad(sample.sum(), far)
    assert grad.isfinite().all()


def test_truncated_bounds() -> None:
    with pytest.raises(RuntimeError, match="low < high"):
        TruncatedNormal(torch.zeros(1), torch.ones(1), low=1.0, high=1.0)
    squeezed = TruncatedNormal(torch.tensor([50.0]), torch.ones(1), upscale=0.5, tanh_loc=True)
    assert_close(squeezed.mode, [0.5])
    bent = TruncatedNormal(torch.tensor([0.3]), torch.ones(1), upscale=0.5, tanh_loc=True)
    assert_close(bent.mode, [0.5 * math.tanh(0.6)])


def test_truncated_density_of_two_entries() -> None:
    loc, scale, x = torch.tensor([0.3, -2.0]), torch.tensor([0.5, 1.0]), torch.tensor([0.1, -0.4])
    both = TruncatedNormal(loc, scale).log_prob(x)
    each = [
        TruncatedNormal(loc[i : i + 1], scale[i : i + 1]).log_prob(x[i : i + 1]) for i in (0, 1)
    ]
    assert_close(both, each[0] + each[1])
