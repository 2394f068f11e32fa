"""A2CLoss against numbers worked out by hand (Mnih et al. 2016, section 4.3 and algorithm S3)."""

import math

import pytest
import torch

from rlobj import A2CLoss
from tests.rlobj import on_policy
from tests.rlobj.cases import assert_close, distance, taped
from tests.rlobj.on_policy import (
    REWARDS,
    VALUES,
    gae,
    gradient,
    known,
    log_normal,
    rollout,
    samples,
    trunk,
)

ACTIONS, GAINS = [0.3, -1.2, 2.0], [1.5, -0.5, 0.25]


def test_terms() -> None:
    """``-log pi(a|s) A``, the entropy of a Gaussian, and the distance of V(s) = 1 to 4."""
    loss = A2CLoss(*known(0.5, 2.0), entropy_coeff=0.3, critic_coeff=0.5, loss_critic_type="l2")
    data = samples(ACTIONS, [1.0] * 3, GAINS, 0.5, 2.0).exclude("action_log_prob")
    data["observation"], data["value_target"] = torch.ones(3, 1), torch.full((3, 1), 4.0)
    out, logs = loss(data), [log_normal(a, 0.5, 2.0) for a in ACTIONS]
    pairs = list(zip(logs, GAINS, strict=True))
    assert_close(out["loss_objective"], -sum(p * g for p, g in pairs) / 3)
    assert_close(
        gradient(out["loss_objective"], loss, "mean"),
        -sum((a - 0.5) / 4 * g for a, g in zip(ACTIONS, GAINS, strict=True)) / 3,
    )
    entropy = 0.5 * math.log(2 * math.pi * math.e * 4)
    assert_close(out["entropy"], entropy)
    assert_close(out["loss_entropy"], -0.3 * entropy)
    assert_close(gradient(out["loss_entropy"], loss, "scale"), -0.3 / 2)
    assert_close(out["loss_critic"], 0.5 * 9)
    assert_close(gradient(out["loss_critic"], loss, "weight"), -0.5 * 2 * 3)
    assert not out["entropy"].requires_grad
    assert set(out.keys()) == set(loss.out_keys)
    for reduction, expected in (("none", [-p * g for p, g in pairs]), ("sum", None)):
        same = A2CLoss(*known(0.5, 2.0), reduction=reduction)(data)["loss_objective"]
        assert_close(same, expected or -sum(p * g for p, g in pairs))


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("end", [False, True])
def test_advantage_is_computed_where_it_is_missing(kind: str, end: bool) -> None:
    loss = A2CLoss(*known(), loss_critic_type=kind, reduction="none", entropy_bonus=False)
    loss.make_value_estimator("gae", gamma=0.9, lmbda=0.7)
    data = rollout(REWARDS, VALUES, end)
    before, out = set(data.keys(True)), loss(data)
    gains = gae(REWARDS, VALUES, 0.9, 0.7, end)
    logs = [log_normal(a, 0, 1) for a in (-1.0, 0.0, 1.0)]
    assert_close(out["loss_objective"], [-p * g for p, g in zip(logs, gains, strict=True)])
    assert_close(out["loss_critic"], [distance(kind, g, 0.0) for g in gains])
    assert set(data.keys(True)) == before
    assert gradient(out["loss_objective"] + 0 * out["loss_critic"], loss, "weight") == 0


def test_clipped_value() -> None:
    """V = 1 was 1, 0.8, 0, or -1: with changes up to 0.3 it counts as 1, 1, 0.3 and -0.7."""
    data = samples([0.0] * 4, [1.0] * 4, [1.0] * 4)
    data["observation"], data["value_target"] = torch.ones(4, 1), torch.full((4, 1), 4.0)
    data["state_value"] = torch.tensor([[1.0], [0.8], [0.0], [-1.0]])
    loss = A2CLoss(*known(), clip_value=0.3, loss_critic_type="l2", reduction="none")
    out = loss(data)
    assert_close(out["loss_critic"], [9.0, 9.0, 3.7**2, 4.7**2])
    assert_close(out["value_clip_fraction"], 0.5)
    assert_close(loss.loss_critic(data)[0], out["loss_critic"].unsqueeze(-1).detach())
    with pytest.raises(KeyError, match="no 'state_value'"):
        loss(data.exclude("state_value"))


def test_what_is_left_out() -> None:
    data = samples(ACTIONS, [1.0] * 3, GAINS)
    for loss in (A2CLoss(*known(), entropy_bonus=False), A2CLoss(*known(), entropy_coeff=0.0)):
        assert set(loss(data).keys()) == set(loss.out_keys) == {"loss_objective", "loss_critic"}
    loss = A2CLoss(*known(), critic_coeff=None)
    assert "loss_critic" not in {*loss(data).keys(), *loss.out_keys}
    assert set(loss.state_dict()) >= {"entropy_coeff"}
    assert "critic_coeff" not in loss.state_dict()
    actor, critic = on_policy.actor(), on_policy.critic()
    critic.in_keys = ["state"]
    assert "state" in A2CLoss(actor, critic).in_keys
    assert "state" not in A2CLoss(actor, critic, critic_coeff=None).in_keys


def test_entropy_bonus() -> None:
    """Of a policy, by samples where there is no closed form."""
    loss = A2CLoss(on_policy.actor(squashed=True), on_policy.critic(), samples_mc_entropy=2)
    dist, eps = loss.distribution(on_policy.batch()), torch.randn(2, 5, 2)
    found = taped([eps], loss.get_entropy_bonus, dist)
    with torch.no_grad():
        before = dist.loc + dist.scale * eps
        density = torch.distributions.Normal(dist.loc, dist.scale).log_prob(before)
        expected = -(density - (1 - before.tanh().square()).log()).sum(-1).mean(0)
    assert_close(found, expected.unsqueeze(-1))


def test_head_of_the_critic_alone() -> None:
    """A critic that reads what the actor computes for itself, whatever the batch holds."""
    data = on_policy.batch("a2c")
    data["advantage"], data["value_target"] = torch.randn(5, 1), torch.randn(5, 1)
    found = []
    for form in ("twice", "once"):
        torch.manual_seed(0)
        loss = A2CLoss(*trunk(form)[1:])
        found += [loss(data), loss(data.clone().set("hidden", torch.zeros(5, 4)))]
    for out in found:
        assert_close(out["loss_critic"], found[0]["loss_critic"].detach())


def test_advantage_without_its_last_axis() -> None:
    data = samples(ACTIONS, [1.0] * 3, GAINS)
    data["advantage"] = data["advantage"].squeeze(-1)
    with pytest.raises(ValueError, match=r"it needs \[\*batch, 1\]"):
        A2CLoss(*known())(data)


def test_refused_arguments() -> None:
    actor, critic = known()
    for missing in ({"actor_network": actor}, {"critic": critic}):
        with pytest.raises(TypeError, match="needs an"):
            A2CLoss(**missing)
    assert A2CLoss(actor=actor, critic=critic).tensor_keys.sample_log_prob == "action_log_prob"
    with pytest.raises(TypeError, match="use critic_coeff"):
        A2CLoss(actor, critic, critic_coef=1.0)
    with pytest.raises(RuntimeError, match="set_keys"):
        A2CLoss(actor, critic, advantage_key="gain")
    with pytest.raises(ValueError, match="must be a number"):
        A2CLoss(actor, critic, clip_value=torch.ones(2))
