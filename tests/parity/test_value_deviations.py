"""Where value estimators do otherwise than torchrl's, and what torchrl's do."""

import warnings

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
import torchrl.objectives.value.functional as theirs_functional
from tensordict import TensorDict
from torch import Tensor

from tests.parity.estimators import (
    AGENTS,
    KINDS,
    LAMBDA,
    Case,
    actor,
    never_terminated,
    no_observation_at_ends,
    run,
    standing,
)
from tests.parity.harness import assert_same, leaves, libraries, seeded

pytestmark = pytest.mark.parity
THEIRS, OURS = libraries()


def both(case: Case, kind: str) -> tuple[TensorDict, TensorDict]:
    """What torchrl's and our estimator leave in the batch."""
    theirs, ours = (seeded(case.estimator, lib, kind)(case.batch()) for lib in (THEIRS, OURS))
    return theirs, ours


def estimates(case: Case, kind: str) -> tuple[Tensor, Tensor]:
    """What torchrl's and our ``value_estimate`` give."""
    made = [seeded(case.estimator, lib, kind) for lib in (THEIRS, OURS)]
    theirs, ours = (estimator.value_estimate(case.batch()) for estimator in made)
    return theirs, ours


def assert_near(ours: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, atol=1e-2)


# ------------------------------------------------------------------ rewards, gradients, numbers


@pytest.mark.parametrize("kind", KINDS[:3])
def test_average_rewards_spares_the_batch(kind: str) -> None:
    case = Case({"average": True})
    reward = case.batch()["next", "reward"]
    theirs, ours = both(case, kind)
    assert torch.equal(ours["next", "reward"], reward)
    assert_near(theirs["next", "reward"], (reward - reward.mean()) / reward.std())


@pytest.mark.parametrize("kind", KINDS)
def test_no_grad_holds(kind: str) -> None:
    case = Case({"differentiable": True}, change=lambda x: x["next", "reward"].requires_grad_())
    with torch.no_grad():
        theirs, ours = both(case, kind)
    assert theirs["value_target"].requires_grad
    assert not ours["value_target"].requires_grad


def test_one_element_is_its_own_mean() -> None:
    with warnings.catch_warnings(action="ignore"):  # of a deviation without degrees of freedom
        theirs, ours = both(Case({"average": True}, shape=(1, 1)), "gae")
    assert theirs["advantage"].isnan().all()
    assert not ours["advantage"].any()


@pytest.mark.parametrize("kind", LAMBDA)
def test_lambda_0(kind: str) -> None:
    case = Case({"lmbda": 0.0, "vectorized": True})
    with pytest.raises(IndexError):
        both(case, kind)
    expected = both(Case({"lmbda": 0.0, "vectorized": False}), kind)[0]
    found = seeded(case.estimator, OURS, kind)(case.batch())
    assert_same(leaves(found), leaves(expected), "batch after the call")


# --------------------------------------------------------------------------------- V-trace


def test_vtrace_weights_are_of_the_recorded_action() -> None:
    """torchrl weights by the likelihood of the policy's own mode, whatever was done; the paper
    (eq. 1) by that of the action in the batch."""
    case = Case(change=lambda data: data["action"].mul_(0.5))
    theirs, ours = both(case, "vtrace")
    assert torch.equal(theirs["advantage"], both(Case(), "vtrace")[0]["advantage"])
    data = case.batch()
    policy = seeded(actor, THEIRS, seed=5)
    log_pi = policy.get_dist(data.clone()).log_prob(data["action"]).detach().unsqueeze(-1)
    advantage, target = theirs_functional.vtrace_advantage_estimate(
        0.9,
        log_pi,
        data["action_log_prob"].unsqueeze(-1),
        *(ours[k] for k in ("state_value", ("next", "state_value"))),
        *(data["next", k] for k in ("reward", "done", "terminated")),
    )
    assert_near(ours["advantage"], advantage)
    assert_near(ours["value_target"], target)
    assert differ(theirs["advantage"], advantage)


def test_vtrace_holds_no_policy() -> None:
    """torchrl's saves the actor with the estimator."""
    theirs, ours = (seeded(Case().estimator, lib, "vtrace") for lib in (THEIRS, OURS))
    actors = {k for k in theirs.state_dict() if k.startswith("actor_network.")}
    assert actors
    assert set(ours.state_dict()) == set(theirs.state_dict()) - actors


# --------------------------------------------------------------------------- value_estimate


@pytest.mark.parametrize("kind", KINDS[:5])
def test_value_estimate_skips_too(kind: str) -> None:
    """torchrl's skip_existing holds in forward only."""
    case = Case({"skip_existing": True}, change=standing(agents=kind == "magae"))
    stands = Case({"value_network": None}, change=case.change)
    right = seeded(stands.estimator, THEIRS, kind)(case.batch())["value_target"]
    theirs, ours = estimates(case, kind)
    assert_near(ours, right)
    assert differ(theirs, right)


def test_value_estimate_resets_too() -> None:
    """torchrl's auto_reset_env holds in forward only."""
    case = Case({"auto_reset_env": True})
    right = both(case, "gae")[0]["value_target"]
    theirs, ours = estimates(case, "gae")
    assert_near(ours, right)
    assert differ(theirs, right)


def test_no_reset_after_a_terminated_step() -> None:
    """torchrl bootstraps one that is truncated at once."""

    def change(data: TensorDict) -> None:
        for key in ("done", "terminated", "truncated"):
            data["next", key].fill_(True)

    theirs, ours = both(Case({"auto_reset_env": True}, change=change), "gae")
    assert_near(ours["value_target"], ours["next", "reward"])
    assert_near(theirs["value_target"], theirs["next", "reward"] + 0.9 * theirs["state_value"])


@pytest.mark.parametrize("kind", ["gae", "magae"])
def test_value_estimate_spares_the_batch(kind: str) -> None:
    for lib, adds in ((THEIRS, {"state_value", ("next", "state_value")}), (OURS, set())):
        data = Case().batch()
        before = set(leaves(data))
        seeded(Case().estimator, lib, kind).value_estimate(data)
        assert set(leaves(data)) - before == adds


@pytest.mark.parametrize("kind", KINDS)
def test_values_where_no_observation_follows(kind: str) -> None:
    """torchrl's forward leaves the values out of the batch, its value_estimate gives NaN."""
    case = Case(change=no_observation_at_ends)
    theirs, ours = both(case, kind)
    assert "state_value" not in theirs
    assert ours["state_value"].isfinite().all()
    assert ours["next", "state_value"].isfinite().all()
    if kind in KINDS[:3]:
        other, own = estimates(case, kind)
        assert other.isnan().any()
        assert_near(own, theirs["value_target"])


# ----------------------------------------------------------------------------------- shifted


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_with_given_parameters(kind: str) -> None:
    """torchrl refuses them, though they are the same for both values."""
    case = Case({"shifted": True, "shifted_budget": 6}, parameters=("params",))
    with pytest.raises(ValueError, match="single call"):
        run(case, THEIRS, kind)
    expected = run(Case(parameters=("params",)), THEIRS, kind)[1]
    found = run(case, OURS, kind)[1]
    for key in ("advantage", "value_target", "state_value"):
        assert_near(found[key], expected[key])


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_that_ends_with_a_terminated_step(kind: str) -> None:
    """Where the last step that has slots is terminated, torchrl bootstraps all the same."""

    def change(data: TensorDict) -> None:
        flags = torch.tensor([[True], [False], [True], [False]])
        data["next", "done"], data["next", "terminated"] = flags, flags & (flags.cumsum(0) > 1)
        data["next", "observation"][1] = data["observation"][2]

    theirs, ours = both(Case({"shifted": True}, shape=(4,), change=change), kind)
    right = both(Case(shape=(4,), change=change), kind)[0]["value_target"]
    assert ours["shifted_valid"].tolist() == [True, True, True, False]
    assert_near(ours["value_target"][:3], right[:3])
    assert differ(theirs["value_target"][2], right[2])


@pytest.mark.parametrize("kind", ["gae", "magae"])
def test_value_estimate_of_every_step(kind: str) -> None:
    """torchrl's follows ``shifted`` and is wrong where a step has no slot."""
    given = {"shape": (4, 9), "change": never_terminated}
    right = estimates(Case(**given), kind)[0]
    theirs, ours = estimates(Case({"shifted": True}, **given), kind)
    assert_near(ours, right)
    assert differ(theirs, right)


@pytest.mark.parametrize("kind", ["gae", "magae", "vtrace"])
def test_average_over_valid_steps(kind: str) -> None:
    """Unbiased, as without ``shifted``; torchrl divides by n there, and its V-trace counts the
    steps that have no values."""
    given = {"shape": (4, 9), "change": never_terminated}
    raw = both(Case({"shifted": True}, **given), kind)[1]
    theirs, ours = both(Case({"shifted": True, "average": True}, **given), kind)
    valid = ours["shifted_valid"]
    assert not valid.all()
    columns = [x["advantage"][valid].flatten(1).unbind(1) for x in (raw, ours, theirs)]
    assert len(columns[0]) == (AGENTS if kind == "magae" else 1)
    for plain, found, other in zip(*columns, strict=True):
        assert_near(found, (plain - plain.mean()) / plain.std())
        assert not torch.allclose(found, other, rtol=1e-3)
