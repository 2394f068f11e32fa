"""The functional forms against torchrl: values, shapes, types and gradients."""

import inspect
import warnings
from dataclasses import dataclass, replace

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
import torchrl.objectives.value.functional as theirs
from torch import Tensor

import rlobj.value.functional as ours

pytestmark = pytest.mark.parity
FUNCTIONS = [*theirs.__all__, "reward2go"]
STEP, COLUMN, ONE, SCALAR = "a number per step", "one row of steps", "one element", "no axis"


@dataclass(frozen=True)
class Row:
    """A batch and the settings of one call; gamma and lmbda are numbers or kinds of tensor."""

    shape: tuple[int, ...] = (3, 7, 1)
    time_dim: int = -2
    gamma: float | str = 0.9
    lmbda: float | str = 0.8
    flags: str = "mixed"
    terminated: bool = True
    rolling: bool | None = None
    clip: tuple[float, float] | None = None
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def scalar(self, kind: float | str, seed: int) -> float | Tensor:
        if not isinstance(kind, str):
            return kind
        column = [
            n if i == self.time_dim % len(self.shape) else 1 for i, n in enumerate(self.shape)
        ]
        shape = {STEP: self.shape, COLUMN: column, ONE: (1,), SCALAR: ()}[kind]
        generator = torch.Generator().manual_seed(seed)
        return 0.5 + 0.5 * torch.rand(shape, generator=generator, dtype=self.dtype)

    def arguments(self, function: str) -> dict[str, object]:
        """Those arguments of a function that this row decides, by name."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(5, *self.shape, generator=generator, dtype=self.dtype)
        kind = torch.rand(self.shape, generator=generator)
        done, terminated = {
            "mixed": (kind < 0.4, kind < 0.2),
            "none": (kind < 0, kind < 0),
            "all": (kind < 1, kind < 1),
            "truncated": (kind < 0.4, kind < 0),
            "terminated": (kind < 0.4, kind < 0.4),
        }[self.flags]
        names = ("state_value", "next_state_value", "reward", "log_pi", "log_mu")
        rho, c = self.clip or (1.0, 1.0)
        values: dict[str, object] = dict(zip(names, draws.unbind(), strict=True)) | {
            "gamma": self.scalar(self.gamma, 1),
            "lmbda": self.scalar(self.lmbda, 2),
            "done": done,
            "terminated": terminated if self.terminated else None,
            "rolling_gamma": self.rolling,
            "rho_thresh": rho,
            "c_thresh": torch.tensor(c, dtype=self.dtype),
            "time_dim": self.time_dim,
        }
        return {k: values[k] for k in inspect.signature(getattr(theirs, function)).parameters}


ROWS = {
    "default": Row(),
    "[T, 1]": Row((7, 1)),
    "[T]": Row((7,), -1),
    "[B, T]": Row((3, 7), -1),
    "time first": Row((7, 3, 1), 0),
    "time in the middle": Row((2, 7, 3, 1), 1),
    "axis counted from the end": Row((2, 7, 3, 2), -3),
    "two batch axes": Row((2, 3, 7, 1)),
    "four features": Row((3, 7, 4)),
    "one step": Row((3, 1, 1)),
    "long": Row((2, 60, 1), flags="none"),
    "long, time first": Row((60, 2, 3), 0),
    "no ends": Row(flags="none"),
    "every step ends": Row(flags="all"),
    "truncated only": Row(flags="truncated"),
    "terminated only": Row(flags="terminated"),
    "without terminated": Row(terminated=False),
    "without terminated, [B, T]": Row((4, 9), -1, terminated=False),
    "without ends": Row(terminated=False, flags="none"),
    "gamma 1": Row(gamma=1.0),
    "gamma 0.5": Row(gamma=0.5, flags="none"),
    "gamma 0": Row(gamma=0.0),
    "lambda 1": Row(lmbda=1.0),
    "lambda 0": Row(lmbda=0.0),
    "gamma 1, lambda 1": Row(gamma=1.0, lmbda=1.0, flags="none"),
    "gamma without axes": Row(gamma=SCALAR),
    "gamma of one element": Row(gamma=ONE),
    "gamma per step": Row(gamma=STEP),
    "gamma per step, no ends": Row(gamma=STEP, flags="none", lmbda=1.0),
    "gamma per step, time first": Row((7, 3, 1), 0, gamma=STEP),
    "gamma per step, features": Row((2, 3, 7, 2), gamma=STEP, seed=1),
    "gamma per step, [B, T]": Row((3, 7), -1, gamma=STEP),
    "lambda without axes": Row(lmbda=SCALAR),
    "lambda of one element": Row(lmbda=ONE, gamma=SCALAR),
    "lambda per step": Row(lmbda=STEP),
    "both per step": Row(gamma=STEP, lmbda=STEP),
    "rolling": Row(gamma=STEP, rolling=True, seed=2),
    "not rolling, gamma per step": Row(gamma=STEP, rolling=False),
    "not rolling, lambda per step": Row(lmbda=STEP, rolling=False),
    "not rolling, both per step": Row((2, 3, 7, 2), gamma=STEP, lmbda=STEP, rolling=False),
    "float32": Row(dtype=torch.float32),
    "low clips": Row(clip=(0.7, 0.4)),
    "high clips": Row(clip=(3.0, 2.0), flags="truncated"),
    "no clip": Row(clip=(1e6, 1e6), gamma=0.95),
}


def reason(function: str, row: Row) -> str | None:
    """Why torchrl's result is not what ours is compared with, each with a test below."""
    used = inspect.signature(getattr(theirs, function)).parameters
    vectorized = function.startswith("vec_") or function == "reward2go"
    if vectorized and 0.0 in (row.gamma, row.lmbda if "lmbda" in used else None):
        return "filter of width zero"
    if vectorized and "lmbda" in used and row.lmbda == STEP:
        return "lambda per step"
    if vectorized and "rolling_gamma" in used and row.rolling is False:
        return "vectorised without rolling"
    if "td1" in function and row.rolling is False:
        return "end of the batch" if row.gamma == STEP else "no gamma per step"
    if function == "reward2go" and row.gamma == STEP:
        return "rewards under a gamma per step"
    return None


def call(module: object, function: str, row: Row) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Results, and the gradients of a random weighting of them with respect to all numbers."""
    arguments = row.arguments(function)
    constants = ("gamma", "lmbda", "c_thresh")
    leaves = {
        k: v.requires_grad_()
        for k, v in arguments.items()
        if isinstance(v, Tensor) and v.is_floating_point() and k not in constants
    }
    with warnings.catch_warnings(action="ignore"):  # of done in place of terminated
        found = getattr(module, function)(**arguments)
    found = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in found]
    total = sum((w * x).sum() for w, x in zip(weights, found, strict=True))
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    given = [torch.zeros(()) if g is None else g for g in grads]
    return tuple(x.detach() for x in found), tuple(given)


def assert_equal(function: str, row: Row, oracle: str | None = None) -> None:
    """Ours equals torchrl's ``oracle``, by default the function of the same name."""
    expected = call(theirs, oracle or function, row)
    torch.testing.assert_close(call(ours, function, row), expected, rtol=1e-5, atol=1e-5)


COMPARED = [(f, name) for f in FUNCTIONS for name, row in ROWS.items() if not reason(f, row)]


@pytest.mark.parametrize(("function", "name"), COMPARED)
def test_equals_torchrl(function: str, name: str) -> None:
    assert_equal(function, ROWS[name])


def decides(function: str, row: Row) -> Row:
    """The row with defaults wherever the function does not look."""
    looks = set(inspect.signature(getattr(theirs, function)).parameters) | {"shape", "flags"}
    renamed = {"rolling": "rolling_gamma", "clip": "rho_thresh"}
    unseen = {k for k in vars(row) if renamed.get(k, k) not in looks | {"dtype", "seed"}}
    return replace(row, **{k: getattr(Row(), k) for k in unseen})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_enough_configurations(function: str) -> None:
    compared = {decides(function, r) for r in ROWS.values() if reason(function, r) is None}
    assert len(compared) >= 20


# ------------------------------------------------------------------ where torchrl does otherwise

LOOPED = [(f, f.removeprefix("vec_")) for f in FUNCTIONS if f.startswith("vec_")]
REFUSED = [
    (function, loop, name)
    for function, loop in LOOPED
    for name, row in ROWS.items()
    if reason(function, row) and not reason(loop, row)
]


@pytest.mark.parametrize(("function", "loop", "name"), REFUSED)
def test_equals_the_loops_of_torchrl(function: str, loop: str, name: str) -> None:
    """torchrl's loops compute what its vectorised forms refuse."""
    assert_equal(function, ROWS[name], loop)


@pytest.mark.parametrize("function", [*(f for f, _ in LOOPED), "reward2go"])
def test_no_discount_at_all(function: str) -> None:
    with pytest.raises(IndexError):
        call(theirs, function, Row(gamma=0.0))
    found, _ = call(ours, function, Row(gamma=0.0))
    if "return" in function or function == "reward2go":
        reward = Row().arguments("reward2go")["reward"]
        torch.testing.assert_close(found[0], reward)
    if "lmbda" in inspect.signature(getattr(theirs, function)).parameters:
        with pytest.raises(IndexError):
            call(theirs, function, Row(lmbda=0.0))


def test_lambda_per_step() -> None:
    """torchrl's vectorised form refuses it, and errs where there is one trajectory."""
    function = "vec_td_lambda_return_estimate"
    with pytest.raises(RuntimeError, match="expand"):
        call(theirs, function, Row(lmbda=STEP))
    one = Row((7, 1), gamma=STEP, lmbda=STEP)
    right = call(theirs, "td_lambda_return_estimate", one)[0]
    assert not torch.allclose(call(theirs, function, one)[0][0], right[0], atol=1e-2)
    torch.testing.assert_close(call(ours, function, one)[0], right)


@pytest.mark.parametrize("function", [f for f, _ in LOOPED if "td" in f])
def test_vectorised_without_rolling(function: str) -> None:
    """torchrl's vectorised forms refuse a gamma per step and ignore the option otherwise, where
    its loops and ours raise."""
    with pytest.raises(NotImplementedError):
        call(theirs, function, Row(gamma=STEP, rolling=False))
    call(ours, function, Row(gamma=STEP, rolling=False))
    call(theirs, function, Row(rolling=False))
    for gamma in (0.9, ONE, SCALAR):
        for library, name in ((theirs, function.removeprefix("vec_")), (ours, function)):
            with pytest.raises(RuntimeError, match="rolling_gamma=False"):
                call(library, name, Row(rolling=False, gamma=gamma))


@pytest.mark.parametrize("form", ["td1_return_estimate", "td1_advantage_estimate"])
def test_td1_without_rolling_ends_with_a_value(form: str) -> None:
    """At the end of the batch torchrl's TD(1) without rolling bootstraps nothing, unlike its
    TD(lambda) with lambda = 1, which ours equals."""
    row = Row(gamma=STEP, rolling=False, flags="none", lmbda=1.0)
    right = call(theirs, form.replace("td1", "td_lambda"), row)
    for function in (form, f"vec_{form}"):
        torch.testing.assert_close(call(ours, function, row), right)
    assert not torch.allclose(call(theirs, form, row)[0][0], right[0][0], atol=1e-2)
    ended = replace(row, flags="all")
    torch.testing.assert_close(call(ours, form, ended), call(theirs, form, ended))


def test_rewards_under_a_gamma_per_step() -> None:
    """The return that TD(1) gives where every value is zero."""
    row = Row(gamma=STEP, flags="terminated")
    with pytest.raises(RuntimeError, match="cannot be converted to Scalar"):
        call(theirs, "reward2go", row)
    arguments = row.arguments("td1_return_estimate")
    arguments["next_state_value"] = torch.zeros(row.shape, dtype=row.dtype)
    right = theirs.td1_return_estimate(**arguments)
    torch.testing.assert_close(ours.reward2go(**row.arguments("reward2go")), right)


def test_shapes_are_checked() -> None:
    """The same kinds of error for the same mistakes."""
    for function in FUNCTIONS:
        for library in (theirs, ours):
            arguments = Row().arguments(function)
            arguments["reward"] = arguments["reward"][:, :-1]
            with pytest.raises(ValueError if function == "reward2go" else RuntimeError):
                getattr(library, function)(**arguments)
