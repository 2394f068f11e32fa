"""Spaces: what they hold, draw and project."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlobj import noise
from rlobj.specs import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
    action_space_of,
    bounds,
)
from tests.rlobj import cases
from tests.rlobj.cases import taped


def assert_close(actual: Tensor, expected: object) -> None:
    cases.assert_close(actual.double(), expected)


SOME = torch.tensor([True, False, False, True, True])
MASK = torch.tensor([True, False, True])
SPECS: dict[str, Callable[[], TensorSpec]] = {
    "bounded": lambda: Bounded(-1.0, torch.tensor([2.0, 3.0])),
    "integers": lambda: Bounded(-1, 2, (2,), dtype=torch.int64),
    "unbounded": lambda: Unbounded(2),
    "categorical": lambda: Categorical(3),
    "categorical_row": lambda: Categorical(3, (2,), dtype=torch.int32),
    "categorical_mask": lambda: Categorical(3, mask=MASK),
    "one_hot": lambda: OneHot(3),
    "one_hot_mask": lambda: OneHot(3, (2, 3), mask=MASK),
    "mult_one_hot": lambda: MultiOneHot([2, 3]),
    "mult_one_hot_mask": lambda: MultiOneHot([2, 3], mask=SOME),
    "binary": lambda: Binary(4),
}
each = pytest.mark.parametrize("name", SPECS)


@each
def test_draws_are_elements(name: str) -> None:
    spec = SPECS[name]()
    draws = spec.rand([50])
    assert draws.shape == (50, *spec.shape)
    assert draws.dtype == spec.dtype
    assert spec.is_in(draws)
    assert spec.is_in(spec.rand())
    assert_close(spec.project(draws), draws)
    assert len(draws.reshape(50, -1).unique(dim=0)) > 1
    assert spec.zero([2]).shape == (2, *spec.shape)
    assert not spec.zero().any()
    assert spec.zero().dtype == spec.dtype
    moved = spec.to("cpu")
    assert (moved.shape, moved.dtype, type(moved)) == (spec.shape, spec.dtype, type(spec))
    assert moved.is_in(draws)
    assert moved.device == torch.device("cpu")


@each
def test_draws_come_through_the_door_of_randomness(name: str) -> None:
    recorder = noise.Recorder()
    with noise.using(recorder):
        SPECS[name]().rand([3])
    assert len(recorder.draws) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bounded", torch.tensor([0.0, 3.1])),
        ("bounded", torch.tensor([-1.1, 0.0])),
        ("bounded", torch.tensor([0.0, 0.0, 0.0])),
        ("categorical", torch.tensor(3)),
        ("categorical", torch.tensor(-1)),
        ("categorical", torch.tensor(1.0)),
        ("categorical_mask", torch.tensor(1)),
        ("one_hot", torch.tensor([True, True, False])),
        ("one_hot", torch.tensor([False, False, False])),
        ("one_hot", torch.tensor([True, False])),
        ("one_hot_mask", torch.tensor([[True, False, False], [False, True, False]])),
        ("mult_one_hot", torch.tensor([True, True, False, False, False])),
        ("binary", torch.tensor([0, 1, 2, 0], dtype=torch.int8)),
    ],
)
def test_what_is_not_in(name: str, value: Tensor) -> None:
    assert not SPECS[name]().is_in(value)


def test_projections_by_hand() -> None:
    assert_close(SPECS["bounded"]().project(torch.tensor([-5.0, 5.0])), [-1.0, 3.0])
    assert_close(Categorical(3).project(torch.tensor([-2, 1, 9])), [0, 1, 2])
    assert_close(OneHot(3).project(torch.tensor([0.2, 0.9, 0.1])), [0, 1, 0])
    values = torch.tensor([0.2, 0.1, 0.3, 0.9, 0.4])
    assert_close(MultiOneHot([2, 3]).project(values), [1, 0, 0, 1, 0])
    assert_close(Binary(3).project(torch.tensor([-1.0, 0.4, 0.6])), [0, 0, 1])


def test_every_alternative_is_as_likely() -> None:
    torch.manual_seed(0)
    for spec, expected in (
        (Categorical(3), [1 / 3] * 3),
        (Categorical(3, mask=MASK), [0.5, 0.0, 0.5]),
        (Bounded(0, 2, (), dtype=torch.int64), [1 / 3] * 3),
    ):
        found = torch.bincount(spec.rand([6000]), minlength=3) / 6000
        torch.testing.assert_close(found, torch.tensor(expected), atol=0.03, rtol=0)
    masked = OneHot(3, mask=MASK).rand([6000]).double().mean(0)
    torch.testing.assert_close(masked, torch.tensor([0.5, 0.0, 0.5]), atol=0.03, rtol=0)


def test_uniform_draw_by_hand() -> None:
    spec = Bounded(-1.0, torch.tensor([1.0, 3.0]))
    assert_close(taped([torch.tensor([0.25, 0.5])], spec.rand), [-0.5, 1.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Bounded(low=1.0), "both low and high"),
        (lambda: Bounded(1.0, 0.0), "low exceeds high"),
        (lambda: OneHot(3, (2,)), r"shape\[-1\] == 3"),
        (lambda: MultiOneHot([2, 3], (4,)), r"shape\[-1\] == 5"),
        (lambda: Binary(), "n or shape"),
        (lambda: Binary(3, (2,)), r"shape\[-1\] == 3"),
        (lambda: Categorical(3, mask=torch.zeros(3)), "mask needs 3 entries"),
        (lambda: MultiOneHot([2, 3], mask=torch.ones(4)), "mask needs 5 entries"),
        (lambda: MultiOneHot([2, 3], mask=SOME & False), "mask needs 5 entries"),
        (lambda: Categorical(4, mask=MASK), "mask needs 4 entries"),
        (lambda: Composite(a=OneHot(3), shape=(2,)), "does not begin with"),
    ],
)
def test_errors(build: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_spaces_say_what_they_are() -> None:
    low, high = SPECS["bounded"]().space
    assert_close(torch.stack([low, high]), [[-1.0, -1.0], [2.0, 3.0]])
    assert Categorical(3).space.n == OneHot(3).space.n == 3
    assert [box.n for box in MultiOneHot([2, 3]).space.boxes] == [2, 3]
    assert Binary(4).space.n == Binary(shape=(2, 4)).n == 4


def test_composite() -> None:
    spec = Composite({("agent", "action"): OneHot(3)}, observation=Unbounded(2), info=None)
    assert spec.keys() == ["agent", "observation", "info"]
    assert ("agent", "action") in spec.keys(True)
    assert "agent" not in spec.keys(True, True)
    assert ("agent", "action") in spec
    assert spec["agent", "action"].n == 3
    draw = spec.rand([4])
    assert draw.batch_size == (4,)
    assert draw["agent", "action"].shape == (4, 3)
    assert "info" not in draw.keys()  # noqa: SIM118
    assert spec.is_in(draw)
    assert not spec.is_in(draw.exclude("observation"))
    wrong = draw.clone()
    wrong["agent", "action"] = torch.ones(4, 3, dtype=torch.bool)
    assert not spec.is_in(wrong)
    assert spec.is_in(spec.project(wrong))
    assert wrong["agent", "action"].all()  # projecting copies
    copy = spec.clone()
    copy["agent", "other"] = Binary(2)
    assert ("agent", "other") not in spec
    assert set(copy.zero([2]).keys(True, True)) == set(copy.keys(True, True)) - {"info"}
    moved = spec.to("cpu")
    assert moved.device == moved["agent", "action"].device == torch.device("cpu")
    with pytest.raises(KeyError):
        spec["nowhere"]


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (OneHot(3), "one_hot"),
        (Categorical(3), "categorical"),
        (MultiOneHot([2]), "mult_one_hot"),
        (Binary(2), "binary"),
        ("one-hot", "one_hot"),
        ("multi_one_hot", "mult_one_hot"),
        ("mult-one-hot", "mult_one_hot"),
        (Composite(action=OneHot(3)), "one_hot"),
        (Composite({("agent", "action"): Binary(3)}), "binary"),
        (type("OneHot", (), {})(), "one_hot"),  # another library's
    ],
)
def test_action_space_names(space: object, name: str) -> None:
    assert action_space_of(space) == name


@pytest.mark.parametrize(
    "space", ["continuous", Bounded(-1.0, 1.0), Composite(a=OneHot(2), b=OneHot(2)), 3]
)
def test_what_is_no_discrete_action_space(space: object) -> None:
    with pytest.raises(ValueError, match="is no discrete action space"):
        action_space_of(space)


def test_bounds() -> None:
    assert_close(bounds(Composite(action=Bounded(-1.0, 2.0)))[1], 2.0)
    for spec in (Unbounded(2), OneHot(3), TensorDict({}, [])):
        with pytest.raises((ValueError, KeyError)):
            bounds(spec)
    with pytest.raises(ValueError, match="has no bounds"):
        bounds(Unbounded(2))


def test_masked_choices() -> None:
    spec = MultiOneHot([2, 3], mask=SOME)
    share = spec.rand((6000,)).double().mean(0)
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0, 0.0, 0.5, 0.5]), atol=0.03, rtol=0)
    assert spec.is_in(torch.tensor([True, False, False, False, True]))
    assert not spec.is_in(torch.tensor([False, True, False, False, True]))
    assert spec.to("cpu").mask is not None
    for cls, n in ((OneHot, 3), (MultiOneHot, [2, 3])):
        with pytest.raises(NotImplementedError, match="use_register"):
            cls(n, use_register=True)


def test_other_names() -> None:
    """What scripts written for torchrl call."""
    box = Bounded(-1.0, 2.0, (2,))
    assert_close(box.zeros((3,)), torch.zeros(3, 2))
    assert_close(box.ones((3,)), torch.ones(3, 2))
    assert box.sample((4,)).shape == (4, 2)
    assert box.contains(torch.zeros(2))
    assert not box.contains(torch.full((2,), 3.0))
    copy = box.clone()
    copy.low.fill_(-9.0)
    assert_close(box.low, [-1.0, -1.0])
    both = Composite(action=box).update({("next", "seen"): Unbounded(3)}).set("extra", None)
    assert both.get("action") is box
    assert both.get(("next", "seen")).shape == (3,)
    assert both.get("missing", 5) == 5
    assert both.values()[0] is box
    assert_close(both.ones((2,))["action"], torch.ones(2, 2))
