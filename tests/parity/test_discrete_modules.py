"""Greedy policies and one-hot distributions against torchrl's."""

from functools import partial

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from torch import nn

from tests.parity.discrete import ACTIONS, WIDTHS, batch, extra, mlp, spec_of
from tests.parity.harness import assert_same, leaves, libraries, seeded

pytestmark = pytest.mark.parity

ATOMS = 6


def atoms():
    return nn.Sequential(mlp(ATOMS * ACTIONS), nn.Unflatten(-1, (ATOMS, ACTIONS)))


def greedy(lib, space="one_hot", named=False, **kwargs):
    given = {"action_space": space} if named else {"spec": spec_of(lib, space)}
    return lib.modules.QValueActor(mlp(), **given, **kwargs)


def columns(lib, **kwargs):
    spec = lib.specs.Categorical(ACTIONS, shape=(1,))
    return lib.modules.QValueActor(mlp(), spec=spec, **kwargs)


def composite(lib):
    spec = lib.specs.Composite(action=lib.specs.OneHot(ACTIONS))
    return lib.modules.QValueActor(mlp(), spec=spec)


def choices(lib):
    body = lib.modules.SafeModule(mlp(), in_keys=["observation"], out_keys=["action_value"])
    head = lib.modules.QValueModule(spec=spec_of(lib, "mult_one_hot"), var_nums=list(WIDTHS))
    return nn.Sequential(body, head)


def c51(lib, space="one_hot", low=0.0, **kwargs):
    support = torch.linspace(low, low + 10, ATOMS)
    spec = spec_of(lib, space)
    return lib.modules.DistributionalQValueActor(atoms(), support, spec=spec, **kwargs)


def masked_c51(lib, low=0.0):
    """torchrl's own log-softmax is applied to the mask, too, and fails."""
    support = torch.linspace(low, low + 10, ATOMS)
    body = nn.Sequential(atoms(), nn.LogSoftmax(-2))
    return lib.modules.DistributionalQValueActor(
        body, support, spec=spec_of(lib, "one_hot"), action_mask_key="allowed",
        make_log_softmax=False,
    )  # fmt: skip


KEYS = {"action_value_key": "q", "chosen_action_value_key": "best"}
POLICIES = {
    "one-hot": (greedy, {}),
    "one-hot, by name": (partial(greedy, named=True), {}),
    "one-hot, windows": (greedy, {"size": (3, 4)}),
    "one-hot, safe": (partial(greedy, safe=True), {}),
    "categorical": (partial(greedy, space="categorical"), {}),
    "categorical, by name": (partial(greedy, space="categorical", named=True), {}),
    "several choices": (choices, {}),
    "composite spec": (composite, {}),
    "renamed": (partial(greedy, action_key=("agent", "action"), **KEYS), {}),
    "masked": (partial(greedy, action_mask_key="allowed"), extra("allowed")),
    "masked, categorical": (
        partial(greedy, space="categorical", action_mask_key="allowed"),
        extra("allowed"),
    ),
    "columns": (partial(columns, strict_shape="auto"), {}),
    "columns of another shape": (partial(columns, strict_shape=False), {}),
    "atoms": (c51, {}),
    "atoms, categorical": (partial(c51, space="categorical", low=-4.0), {"size": (3, 4)}),
    "atoms, renamed": (partial(c51, action_value_key="q"), {}),
    "atoms, masked": (masked_c51, extra("allowed")),
}


def outputs(build, own_modules, given):
    found = []
    for lib in libraries(own_modules):
        actor = seeded(build, lib)
        data = batch(*given.get("size", ()), **{k: v for k, v in given.items() if k != "size"})
        if "allowed" in data.keys():  # noqa: SIM118
            has_atoms = hasattr(actor, "support")  # torchrl wants a mask with an axis for the atoms
            data["allowed"] = data["allowed"].unsqueeze(-2) if has_atoms else data["allowed"]
        found.append((actor, seeded(actor, data)))
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_policies_equal_torchrls(name: str) -> None:
    (their_actor, theirs), (our_actor, ours) = outputs(POLICIES[name][0], True, POLICIES[name][1])
    assert_same(our_actor.state_dict(), their_actor.state_dict(), "parameters")
    assert_same(leaves(ours), leaves(theirs), "outputs")


def test_an_action_of_another_shape_is_refused() -> None:
    for lib in libraries():
        actor = columns(lib)
        with pytest.raises(RuntimeError, match="strict_shape"):
            actor(batch())


@pytest.mark.parametrize("given", ["logits", "probs"])
def test_one_hot_categorical(given: str) -> None:
    raw = torch.randn(6, ACTIONS)
    value = nn.functional.one_hot(torch.arange(6) % ACTIONS, ACTIONS)
    found = []
    for lib in libraries():
        x = (raw if given == "logits" else raw.exp()).clone().requires_grad_()
        dist = lib.modules.OneHotCategorical(**{given: x})
        out = {
            "probs": dist.probs, "logits": dist.logits, "entropy": dist.entropy(),
            "log_prob": dist.log_prob(value), "mode": dist.mode,
            "sample": dist.sample((2, 3)).sum((0, 1, -1)), "num": torch.tensor(dist.num_samples),
            "deterministic": dist.deterministic_sample, "shape": torch.tensor(dist.batch_shape),
        }  # fmt: skip
        total = dist.entropy().sum() + (2 * dist.log_prob(value)).sum()
        out["gradient"] = torch.autograd.grad(total, x)[0]
        found.append(out)
    assert_same(found[1], found[0], given)


def test_pass_through_gradient() -> None:
    logits, weight = torch.randn(6, ACTIONS), torch.randn(6, ACTIONS)
    found = []
    for lib in libraries():
        x = logits.clone().requires_grad_()
        sample = lib.modules.OneHotCategorical(logits=x).rsample()
        found.append({"gradient": torch.autograd.grad((weight * sample).sum(), x)[0]})
    assert_same(found[1], found[0], "rsample")


# where torchrl goes wrong: see docs/deviations.md


def test_torchrl_takes_all_of_several_best_actions() -> None:
    values = torch.tensor([[1.0, 3.0, 3.0]])
    theirs, ours = (lib.modules.QValueModule("one_hot")(values) for lib in libraries())
    assert theirs[0].tolist() == [[0, 1, 1]]
    assert theirs[2].item() == 6.0
    assert ours[0].tolist() == [[0, 1, 0]]
    assert ours[2].item() == 3.0
    modes = [lib.modules.OneHotCategorical(logits=values).mode.tolist() for lib in libraries()]
    assert modes == [[[0, 1, 1]], [[0, 1, 0]]]


def test_torchrl_takes_forbidden_actions_where_returns_are_negative() -> None:
    found = []
    for lib in libraries():
        actor = seeded(partial(masked_c51, low=-12.0), lib)
        data = batch(**extra("allowed"))
        allowed, data["allowed"] = data["allowed"], data["allowed"].unsqueeze(-2)
        found.append((actor(data)["action"].bool() & ~allowed).any(-1))
    assert found[0].any()
    assert not found[1].any()
