"""The three PPO losses against numbers worked out by hand (Schulman et al. 2017)."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)

from rlobj import ClipPPOLoss, KLPENPPOLoss, LossModule, PPOLoss, SoftUpdate
from rlobj.modules import IndependentNormal, OneHotCategorical, ProbabilisticActor, TanhNormal
from tests.rlobj import on_policy
from tests.rlobj.cases import assert_close, taped
from tests.rlobj.on_policy import (
    ACTIONS,
    GAINS,
    PPOS,
    RATIOS,
    gradient,
    known,
    log_normal,
    samples,
    weighed,
)

each_loss = pytest.mark.parametrize("cls", PPOS)


def test_importance_weights() -> None:
    """Eq. 6: minus the ratio times the advantage; its gradient is -w A d log pi."""
    loss = PPOLoss(*known(), reduction="none", entropy_bonus=False)
    out = loss(weighed())
    assert_close(out["loss_objective"], [-0.5, -0.9, -1.1, -1.5, 0.5, 0.9, 1.1, 1.5])
    slopes = [-r * g * a for r, g, a in zip(RATIOS, GAINS, ACTIONS, strict=True)]
    assert_close(gradient(out["loss_objective"], loss, "mean"), sum(slopes))
    assert_close(out["kl_approx"], -sum(math.log(r) for r in RATIOS) / 8)


@pytest.mark.parametrize(
    ("epsilon", "expected", "clipped", "passes"),
    [
        (0.2, [-0.5, -0.9, -1.1, -1.2, 0.8, 0.9, 1.1, 1.5], 4, (0, 1, 2, 5, 6, 7)),
        (0.05, [-0.5, -0.9, -1.05, -1.05, 0.95, 0.95, 1.1, 1.5], 8, (0, 1, 6, 7)),
        ((0.4, 0.05), [-0.5, -0.9, -1.05, -1.05, 0.6, 0.9, 1.1, 1.5], 6, (0, 1, 5, 6, 7)),
        ((0.05, 0.6), [-0.5, -0.9, -1.1, -1.5, 0.95, 0.95, 1.1, 1.5], 4, (0, 1, 2, 3, 6, 7)),
    ],
)
def test_clipping(epsilon: object, expected: list, clipped: int, passes: tuple) -> None:
    """Eq. 7; no gradient where clipping decides."""
    loss = ClipPPOLoss(*known(), clip_epsilon=epsilon, reduction="none", entropy_bonus=False)
    out = loss(weighed())
    assert_close(out["loss_objective"], expected)
    assert_close(out["clip_fraction"], clipped / 8)
    slopes = [-RATIOS[i] * GAINS[i] * ACTIONS[i] for i in passes]
    assert_close(gradient(out["loss_objective"], loss, "mean"), sum(slopes))


def test_what_clipping_reports() -> None:
    out = ClipPPOLoss(*known())(weighed())
    assert_close(out["ESS"], 8.0**2 / (2 * (0.25 + 0.81 + 1.21 + 2.25)) / 8)  # (sum w)^2 / sum w^2
    assert_close(out["max_ratio"], 1.5)
    assert_close(out["mean_ratio"], 1.0)
    assert_close(out["kl_approx"], -sum(math.log(r) for r in RATIOS) / 8)
    assert not any(out[k].requires_grad for k in ("ESS", "max_ratio", "mean_ratio", "kl_approx"))
    time = ClipPPOLoss(*known())(weighed().reshape(2, 4))
    assert_close(time["ESS"], [(2 * r) ** 2 / (2 * r**2) / 2 for r in RATIOS[:4]])


KL = math.log(2) + (1 + 1) / (2 * 4) - 0.5  # KL(N(0, 1), N(1, 2))


def penalised(actions: list[float] = ACTIONS, **kwargs: object) -> tuple[LossModule, TensorDict]:
    data = samples(actions, RATIOS[: len(actions)], GAINS[: len(actions)], 1.0, 2.0)
    data["loc"], data["scale"] = torch.zeros(len(actions), 1), torch.ones(len(actions), 1)
    return KLPENPPOLoss(*known(1.0, 2.0), entropy_bonus=False, **kwargs), data


def test_penalty() -> None:
    """Eq. 8, with the gradient of the penalty at the beta of this call."""
    loss, data = penalised(beta=3.0, reduction="none")
    out = loss(data)
    surrogate = [r * g for r, g in zip(RATIOS, GAINS, strict=True)]
    assert_close(out["loss_objective"], [3 * KL - x for x in surrogate])
    assert_close(out["kl"], [[KL]] * 8)
    assert not out["kl"].requires_grad
    scores = [x * (a - 1) / 4 for x, a in zip(surrogate, ACTIONS, strict=True)]
    assert_close(gradient(out["loss_objective"], loss, "mean"), 8 * 3 * 1 / 4 - sum(scores))
    assert_close(loss.beta, 6.0)


@pytest.mark.parametrize(
    ("target", "factor"),
    [(KL / 1.51, 4), (KL / 1.49, 1), (KL, 1), (KL * 1.49, 1), (KL * 1.51, 0.25)],
)
def test_adaptive_penalty(target: float, factor: float) -> None:
    """Section 4: beta grows above 1.5 times the target, shrinks below it over 1.5."""
    loss, data = penalised(beta=3.0, dtarg=target, increment=4, decrement=0.25)
    first, second = loss(data)["loss_objective"], loss(data)["loss_objective"]
    assert_close(second - first, 3 * (factor - 1) * KL)
    assert_close(loss.beta, 3 * factor**2)
    loss.reset()
    assert_close(loss.beta, 3.0)
    with loss.bind(loss.tensors()):
        loss(data)
    assert_close(loss.beta, 3.0)


def test_penalty_at_the_bounds() -> None:
    """A divergence of exactly 1.5 times the target, or the target over 1.5, changes nothing."""
    data = samples([0.3], [1.0], [1.0], 1.0, 1.0)
    data["loc"], data["scale"] = torch.zeros(1, 1), torch.ones(1, 1)
    for target in (1 / 3, 0.75):
        loss = KLPENPPOLoss(*known(1.0, 1.0), dtarg=target)  # N(0, 1) and N(1, 1): 0.5
        loss(data)
        assert loss.beta == 1
    assert (0.75 / 1.5, 1.5 / 3) == (0.5, 0.5)


def test_only_what_counts_moves_the_penalty() -> None:
    loss, data = penalised(dtarg=0.5 * KL)
    data["loc"][4:], data["scale"][4:] = 1.0, 2.0  # no divergence there: a mean of half of KL
    loss(data)
    assert_close(loss.beta, 1.0)
    data["shifted_valid"] = torch.arange(8) < 4
    loss(data)
    assert_close(loss.beta, 2.0)


def test_divergence_by_samples() -> None:
    """Of policies whose divergence has no closed form: a mean over samples of the old one."""
    loss, _ = penalised(ACTIONS[:1], samples_mc_kl=3, reduction="none")

    def two_parts(mean: float, scale: float) -> CompositeDistribution:
        one = {"loc": torch.tensor([[mean]]), "scale": torch.tensor([[scale]])}
        kinds = {"a": IndependentNormal, "b": IndependentNormal}
        return CompositeDistribution(TensorDict(dict.fromkeys(kinds, one), [1]), kinds)

    old, new = two_parts(0.0, 1.0), two_parts(1.0, 2.0)
    draws = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, -0.5])
    tape = [x.reshape(3, 1, 1) for x in draws]
    found = taped(tape, loss._divergence, old, new, torch.Size([1]))
    gaps = [log_normal(x, 0, 1) - log_normal(x, 1, 2) for x in torch.cat(draws).tolist()]
    assert_close(found, [[sum(gaps) / 3]])


def test_divergence_of_single_actions_by_samples() -> None:
    """N(0, 1) and N(1, 1) from a Cauchy distribution, three samples of each."""
    loss, _ = penalised(ACTIONS[:1], samples_mc_kl=3, reduction="none")
    means, draws = [0.0, 1.0], [[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]]
    old = IndependentNormal(torch.tensor(means).unsqueeze(-1), torch.ones(2, 1))
    cauchy = torch.distributions.Cauchy(torch.ones(2, 1), torch.full((2, 1), 2.0))
    new = torch.distributions.Independent(cauchy, 1)
    found = taped(
        [torch.tensor(draws).T.unsqueeze(-1)], loss._divergence, old, new, old.batch_shape
    )
    expected = []
    for mean, noise in zip(means, draws, strict=True):
        actions = [mean + x for x in noise]
        logs = [-math.log(2 * math.pi * (1 + ((a - 1) / 2) ** 2)) for a in actions]
        gaps = [log_normal(a, mean, 1) - p for a, p in zip(actions, logs, strict=True)]
        expected.append([sum(gaps) / 3])
    assert_close(found, expected)


def test_divergence_by_samples_of_each_row() -> None:
    """Of a composite action: N(0, 1) and N(0.5, 1) from N(0.3, 0.8), a sample of each."""
    outs = [("params", "a", "loc"), ("params", "a", "scale")]
    actor = ProbabilisticActor(
        TensorDictModule(on_policy.Fixed(0.3, 0.8), ["observation"], outs), ["params"],
        distribution_class=CompositeDistribution,
        distribution_kwargs={"distribution_map": {"a": IndependentNormal}},
    )  # fmt: skip
    loss = KLPENPPOLoss(actor, entropy_bonus=False)
    data = TensorDict({"observation": torch.zeros(2, 1), "a": torch.zeros(2, 1)}, [2])
    data["a_log_prob"], data["advantage"] = torch.zeros(2), torch.zeros(2, 1)
    data[outs[0]], data[outs[1]] = torch.tensor([[0.0], [0.5]]), torch.ones(2, 1)
    out = taped([torch.tensor([[[0.4], [-1.0]]])], loss, data)
    gaps = [log_normal(x, m, 1) - log_normal(x, 0.3, 0.8) for x, m in ((0.4, 0.0), (-0.5, 0.5))]
    assert_close(out["kl"], [[g] for g in gaps])


@pytest.mark.parametrize("kind", [IndependentNormal, TanhNormal, OneHotCategorical])
def test_divergences_in_closed_form(kind: type) -> None:
    """Against a mean over many samples."""
    torch.manual_seed(1)
    if kind is OneHotCategorical:
        old, new = (kind(logits=torch.randn(2, 3)) for _ in range(2))
    else:
        old, new = (kind(0.3 * torch.randn(2, 2), 0.5 + torch.rand(2, 2)) for _ in range(2))
    x = old.sample((50_000,))
    slow = (old.log_prob(x) - new.log_prob(x)).mean(0)
    exact = torch.distributions.kl_divergence(old, new)
    torch.testing.assert_close(exact, slow, rtol=0.05, atol=0.005)


def test_divergence_of_an_impossible_action() -> None:
    old, new = (OneHotCategorical(probs=torch.tensor(p)) for p in ([0.5, 0.5, 0.0], [0.25] * 3))
    assert_close(torch.distributions.kl_divergence(old, new), math.log(1.5))


# the proximal policy and the cap


def test_delayed_actor() -> None:
    """The trust region is around the delayed policy N(0, 1), the weights are against the recorded
    one; the policy N(0.5, 1) moved."""
    loss = ClipPPOLoss(*known(), delay_actor=True, reduction="none", entropy_bonus=False)
    updater = SoftUpdate(loss, tau=0.5)
    loss.actor_network_params.data["module", "0", "module", "mean"].fill_(0.5)
    data = weighed()
    ratio = [math.exp(log_normal(a, 0.5, 1) - log_normal(a, 0, 1)) for a in ACTIONS]  # pi / prox
    held = [min(max(r, 0.8), 1.2) for r in ratio]
    terms = zip(ratio, held, RATIOS, GAINS, strict=True)  # RATIOS: prox / old
    out = loss(data)
    assert_close(out["loss_objective"], [-min(r * w * g, h * w * g) for r, h, w, g in terms])
    share = sum(r != h for r, h in zip(ratio, held, strict=True)) / 8
    assert 0 < share < 1
    assert_close(out["clip_fraction"], share)
    assert_close(out["max_ratio"], max(r * w for r, w in zip(ratio, RATIOS, strict=True)))
    assert_close(out["kl_approx"], -sum(math.log(r) for r in ratio) / 8)
    updater.step()
    assert_close(loss.target_actor_network_params["module", "0", "module", "mean"], 0.25)
    penal = KLPENPPOLoss(*known(), delay_actor=True)
    SoftUpdate(penal, tau=0.5)
    penal.actor_network_params.data["module", "0", "module", "mean"].fill_(0.5)
    assert_close(penal(data)["kl"], [[0.5**2 / 2]] * 8)  # against the delayed policy


def test_delayed_policy_is_a_constant() -> None:
    """Also for an encoder of observations that is trained before the loss."""
    loss, data = PPOLoss(on_policy.actor(), delay_actor=True), on_policy.batch()
    data["observation"].requires_grad_()
    step = loss._step(data, loss.distribution(data), torch.ones(5, 1))
    assert (step.log_ratio.requires_grad, step.correction.requires_grad) == (True, False)


@each_loss
def test_cap_of_the_weights(cls: type) -> None:
    """A capped weight still has its policy's gradient."""
    loss = cls(*known(), max_importance_ratio=1.05, reduction="none", entropy_bonus=False)
    data = weighed()
    data["loc"], data["scale"] = torch.zeros(8, 1), torch.ones(8, 1)
    capped = [min(r, 1.05) for r in RATIOS]
    out = loss(data)
    if cls is not ClipPPOLoss:
        assert_close(out["loss_objective"], [-w * g for w, g in zip(capped, GAINS, strict=True)])
        slopes = [-w * g * a for w, g, a in zip(capped, GAINS, ACTIONS, strict=True)]
        assert_close(gradient(out["loss_objective"], loss, "mean"), sum(slopes))
    else:
        assert_close(out["max_ratio"], 1.05)
        assert_close(out["clip_fraction"], 0.5)  # clipping looks at what was not capped
    with pytest.raises(ValueError, match="must be positive"):
        cls(*known(), max_importance_ratio=0.0)


# arguments


def test_a_penalty_needs_one_distribution() -> None:
    body = TensorDictModule(on_policy.Fixed(), ["observation"], ["loc", "scale"])
    two = [
        ProbabilisticTensorDictModule(["loc", "scale"], [k], distribution_class=IndependentNormal)
        for k in ("a", "b")
    ]
    loss = KLPENPPOLoss(ProbabilisticTensorDictSequential(body, *two))
    with pytest.raises(RuntimeError, match="must have one distribution, it has 2"):
        loss.in_keys  # noqa: B018


def test_scheduled_bounds() -> None:
    loss = ClipPPOLoss(*known(), reduction="none", entropy_bonus=False)
    loss.clip_epsilon = 0.4
    assert_close(loss(weighed())["loss_objective"], [-0.5, -0.9, -1.1, -1.4, 0.6, 0.9, 1.1, 1.5])
    assert_close(loss.state_dict()["clip_epsilon"], 0.4)
    pair = ClipPPOLoss(*known(), clip_epsilon=(0.1, 0.3), reduction="none", entropy_bonus=False)
    pair.clip_epsilon_low = 0.4
    assert_close(pair(weighed())["loss_objective"], [-0.5, -0.9, -1.1, -1.3, 0.6, 0.9, 1.1, 1.5])
    for one, name in ((loss, "clip_epsilon_low"), (pair, "clip_epsilon")):
        with pytest.raises(AttributeError, match="would change nothing"):
            setattr(one, name, 0.2)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda a, v: PPOLoss(None, v), TypeError, "needs an actor_network"),
        (lambda a, v: PPOLoss(a, critic_coeff=1.0), TypeError, "needs a critic_network"),
        (lambda a, v: PPOLoss(a, v, gamma=0.9), TypeError, "make_value_estimator"),
        (lambda a, v: PPOLoss(a, v, entropy_coef=0.1), TypeError, "use entropy_coeff"),
        (lambda a, v: ClipPPOLoss(a, v, critic_coef=0.1), TypeError, "use critic_coeff"),
        (lambda a, v: ClipPPOLoss(a, v, advantage_key="x"), RuntimeError, "set_keys"),
        (lambda a, v: ClipPPOLoss(a, v, value_target_key="x"), RuntimeError, "set_keys"),
        (lambda a, v: KLPENPPOLoss(a, v, value_key="x"), RuntimeError, "set_keys"),
        (lambda a, v: ClipPPOLoss(a, v, clip_epsilon=-0.1), ValueError, "an interval around 1"),
        (lambda a, v: ClipPPOLoss(a, v, clip_epsilon=1.5), ValueError, "an interval around 1"),
        (lambda a, v: ClipPPOLoss(a, v, clip_epsilon=(0.1, -1.0)), ValueError, "an interval"),
        (
            lambda a, v: ClipPPOLoss(a, v, clip_epsilon=(0.1, 0.2), clip_value=True),
            ValueError,
            "which is a pair",
        ),
        (lambda a, v: KLPENPPOLoss(a, v, increment=0.5), ValueError, "increment >= 1"),
        (lambda a, v: KLPENPPOLoss(a, v, decrement=1.5), ValueError, "increment >= 1"),
    ],
)
def test_refused_arguments(make: Callable, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        make(*known())


@each_loss
def test_other_names_of_the_networks(cls: type) -> None:
    actor, critic = known()
    loss = cls(actor=actor, critic=critic)
    assert set(loss.state_dict()) == set(cls(actor, critic).state_dict())
    assert "loss_critic" in loss.out_keys
    shown = inspect.signature(cls).parameters
    assert {"entropy_coeff", "clip_value", "delay_actor", "device"} < set(shown)
    assert not any(k.startswith("_") or p.kind is p.VAR_KEYWORD for k, p in shown.items())


@pytest.mark.parametrize("cls", [PPOLoss, ClipPPOLoss])
def test_a_recorded_log_probability_with_another_axis_is_refused(cls: type) -> None:
    """Catches: every sample weighed by every other one's old probability."""
    loss, data = cls(on_policy.actor(), on_policy.critic()), on_policy.batch()
    key = loss.tensor_keys.sample_log_prob
    data.set(key, data.get(key).unsqueeze(-1))
    with pytest.raises(ValueError, match="would broadcast"):
        loss(data)


def test_v_trace_weighs_by_the_policy_of_now() -> None:
    """Catches: ratios of the delayed actor, which ``delay_actor`` keeps for the loss."""

    def advantages(delay: bool) -> torch.Tensor:
        torch.manual_seed(0)
        loss = ClipPPOLoss(on_policy.actor(), on_policy.critic(), delay_actor=delay)
        loss.make_value_estimator("vtrace", gamma=0.9)
        for weight in loss.actor_network_params.values(True, True):
            weight.data.mul_(1.5).add_(0.1)
        data = on_policy.batch(n=6).unsqueeze(0)
        params = (loss.critic_network_params, loss.target_critic_network_params)
        loss.value_estimator(data, params=params[0], target_params=params[1])
        return data["advantage"]

    assert torch.equal(advantages(True), advantages(False))
