"""A loss's parts: reduced when called by themselves, per sample inside ``forward``."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

import rlobj
from rlobj import LossModule, noise
from rlobj._parts import part
from tests.rlobj import cases, discrete, dreams, on_policy
from tests.rlobj.cases import CASES, assert_close, batch_for, build

CLONING, Q_LEARNING = {"loss_bc": "actor_loss"}, {"loss": "qvalue_loss"}
ACTOR_CRITIC = {"loss_actor": "actor_loss", "loss_qvalue": "qvalue_loss"}
WITH_VALUE = {**ACTOR_CRITIC, "loss_value": "value_loss"}
CQL = {
    "loss_qvalue": "q_loss",
    "loss_cql": "cql_loss",
    "loss_actor_bc": "actor_bc_loss",
    "loss_actor": "actor_loss",
}
# forward's terms that are a part of the loss, by case
TERMS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bc", "bc_l2"), CLONING),
    **dict.fromkeys(
        ("td3_bc", "rebrac", "awac", "discrete_sac", "sac", "sac_delayed"), ACTOR_CRITIC
    ),
    **dict.fromkeys(("iql", "xql", "xql_random", "discrete_iql", "sac_v1"), WITH_VALUE),
    **dict.fromkeys(("cql", "cql_lagrange", "cal_ql", "cal_ql_lagrange"), CQL),
    **dict.fromkeys(("dqn", "dqn_double", "c51", "c51_index", "qmixer", "qmixer_vdn"), Q_LEARNING),
    "td3": {"loss_actor": "actor_loss", "loss_qvalue": "value_loss"},
    "ddpg": {"loss_actor": "loss_actor", "loss_value": "loss_value"},
    "edac": {**ACTOR_CRITIC, "loss_diversity": "diversity_loss"},
    "discrete_cql": {"loss_qvalue": "value_loss", "loss_cql": "cql_loss"},
}
TERMLESS = (*dreams.DREAMS, *on_policy.ON_POLICY, "redq", "dt", "online_dt")
# other names of a term
ALIASES = {"sac": ["qvalue_v2_loss"], "sac_v1": ["qvalue_v1_loss"]}
WEIGHS = ("td3_bc", "td3", "rebrac", "ddpg", "awac", "edac", "sac", "sac_delayed", "sac_v1")
WEIGHS += ("discrete_sac", *discrete.WEIGHS)
# here what counts has a say in the values of single samples, too
COUPLED = ("td3_bc", "rebrac", "xql", "xql_random")
each_case = pytest.mark.parametrize("name", TERMS)
each_batch = pytest.mark.parametrize(
    ("mask", "weights"), [(False, False), (True, False), (False, True), (True, True)]
)


def same_noise(method: Callable, data: TensorDict) -> Any:
    """Call with noise that depends on nothing but its shape, whatever was drawn before."""

    def draw(wanted: noise.Draw, device: torch.device) -> Tensor:
        return wanted.sample(torch.Generator().manual_seed(0), device, 1)[0]

    with noise.using(draw):
        return method(data.clone())


def value(loss: LossModule, method: str, data: TensorDict) -> Tensor:
    return same_noise(getattr(loss, method), data)[0].detach()


def given(name: str, mask: bool, weights: bool) -> tuple[TensorDict, Tensor]:
    """A batch, and how much each sample counts."""
    data, generator = batch_for(name), torch.Generator().manual_seed(3)
    counts, weight = (torch.rand(data.shape, generator=generator) for _ in range(2))
    keep, total = counts > 0.4, torch.ones(data.shape)
    assert {True, False} == set(keep.tolist())
    if mask:
        data["collector", "mask"] = keep
        total = total * keep
    if weights:
        data["priority_weight"] = 0.1 + weight.unsqueeze(-1)
        total = total * (0.1 + weight) if name in WEIGHS else total
    return data, total


def declared(cls: type) -> set[str]:
    """The class's own methods under ``@part``."""
    wrapper = part(lambda self, tensordict: None).__code__
    found = set()
    for name, method in vars(cls).items():
        while method is not None:
            found |= {name} if getattr(method, "__code__", None) is wrapper else set()
            method = getattr(method, "__wrapped__", None)
    return found


def test_every_part_is_tried() -> None:
    tried: dict[type, set[str]] = {}
    for name in CASES:
        names = {*TERMS.get(name, {}).values(), *ALIASES.get(name, ())}
        tried.setdefault(type(build(name)), set()).update(names)
        assert (name in TERMS) != (name in TERMLESS)
    for cls, names in tried.items():
        assert declared(cls) <= names, cls


def test_what_looks_like_a_part_is_one() -> None:
    """A public ``*_loss`` or ``loss_*`` of a batch."""
    for cls in (x for x in vars(rlobj).values() if isinstance(x, type)):
        if issubclass(cls, LossModule):
            methods = {k: v for k, v in vars(cls).items() if inspect.isfunction(v)}
            looks = {k for k in methods if k.endswith("_loss") or k.startswith("loss_")}
            # loss_critic of the on-policy losses is per sample, as upstream's
            looks = {k for k in looks if not k.startswith("_") and k != "loss_critic"}
            of_a_batch = {
                k for k in looks if "tensordict" in inspect.signature(methods[k]).parameters
            }
            chooses = {"qvalue_loss"} if cls is rlobj.SACLoss else set()  # one of two parts
            assert of_a_batch - chooses == declared(cls), cls


@each_case
@each_batch
def test_reduced_when_called_alone(name: str, mask: bool, weights: bool) -> None:
    data, counts = given(name, mask, weights)
    losses = {r: build(name, reduction=r) for r in (None, "mean", "sum", "none")}
    for method in (*TERMS[name].values(), *ALIASES.get(name, ())):
        each = value(losses["none"], method, data)
        assert each.shape[: data.ndim] == data.shape
        size = counts.reshape(counts.shape + (1,) * (each.ndim - counts.ndim)).expand_as(each)
        plain = value(losses["none"], method, batch_for(name))
        if not (mask and name in COUPLED):
            assert_close(each, plain * size)
        assert each[counts == 0].abs().sum() == 0
        assert_close(value(losses["sum"], method, data), each.sum())
        for reduction in (None, "mean"):
            assert_close(value(losses[reduction], method, data), each.sum() / size.sum())


@each_case
@each_batch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduced_once_in_forward(name: str, mask: bool, weights: bool, reduction: str) -> None:
    loss, (data, _) = build(name, reduction=reduction), given(name, mask, weights)
    out = same_noise(loss, data)
    for term, method in TERMS[name].items():
        assert_close(out[term], value(loss, method, data))


@each_case
def test_after_an_error_all_is_as_before(name: str) -> None:
    loss, data = build(name), batch_for(name)
    broken = data.exclude(getattr(loss.tensor_keys, "action", "action"))
    for method in TERMS[name].values():
        expected = value(loss, method, data)
        for call in (loss, getattr(loss, method)):
            try:  # an actor's own loss may need no action
                same_noise(call, broken)
            except (KeyError, AttributeError, TypeError, ValueError):
                pass
            else:
                assert call is not loss
            assert_close(value(loss, method, data), expected)
    assert expected.shape == ()


def test_a_change_of_reduction_is_obeyed() -> None:
    loss, data = build("ddpg"), cases.batch()
    loss.reduction = "none"
    each = loss.loss_value(data)[0].detach()
    assert each.shape == (cases.N,)
    loss.reduction = "sum"
    assert_close(loss.loss_value(data)[0], each.sum())
