"""Distances, next-state values, target updates and frozen networks against torchrl."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from tests.parity.harness import assert_same, leaves, libraries, seeded, tensors_of, transitions
from tests.parity.user_loss import user_loss

pytestmark = pytest.mark.parity
THEIRS, OURS = libraries()
LIBRARIES = pytest.mark.parametrize("lib", [THEIRS, OURS], ids=lambda x: x.name)

# ---------------------------------------------------------------------------------- distances

KINDS = ("l1", "l2", "smooth_l1")
SHAPES = [((3,), (3,)), ((2, 3), (2, 3)), ((2, 3, 1), (2, 3, 1)), ((), ()), ((0, 2), (0, 2))]
LOOSE = [((3,), (2, 3)), ((2, 1), (1, 3)), ((), (4,))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shapes", "strict"),
    [*((s, t) for s in SHAPES for t in (True, False)), *((s, False) for s in LOOSE)],
)
def test_distance(kind: str, shapes: tuple, strict: bool) -> None:
    found = []
    for lib in (THEIRS, OURS):
        generator = torch.Generator().manual_seed(0)
        pair = [2 * torch.randn(s, generator=generator) for s in shapes]
        pair = [x.requires_grad_() for x in pair]
        with warnings.catch_warnings(action="ignore"):  # of shapes that differ
            value = lib.losses.distance_loss(*pair, kind, strict_shape=strict)
        found.append((value, *torch.autograd.grad(value.sum(), pair)))
    torch.testing.assert_close(found[1], found[0])


@LIBRARIES
def test_distances_refused(lib: Any) -> None:
    a, b = torch.zeros(2), torch.zeros(2, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        lib.losses.distance_loss(a, b, "l1")
    with pytest.raises(NotImplementedError):
        lib.losses.distance_loss(a, a, "huber")


# --------------------------------------------------------------------------- next_state_value


def ended(how: str) -> Callable[[TensorDict], TensorDict]:
    """Flags on which both agree: torchrl reads ``done`` alone."""

    def change(data: TensorDict) -> TensorDict:
        after = data["next"]
        if how == "never":
            after["done"].zero_()
        if how == "always":
            after["done"].fill_(True)
        if how == "no terminated":
            return data.exclude(("next", "terminated"))
        after["terminated"] = after["done"].clone()
        return data

    return change


@dataclass(frozen=True)
class Ask:
    shape: tuple[int, ...] = (6,)
    ends: str = "terminated"
    steps: bool = False
    given: str = "operator"  # or: column, flat
    reads: tuple[str, ...] = ("observation",)
    key: str = "state_action_value"
    gamma: float | None = None

    def answer(self, lib: Any) -> tuple[Tensor, dict]:
        data = ended(self.ends)(transitions(*self.shape))
        if self.steps:
            count = torch.arange(data.numel()).reshape(*self.shape, 1) % 3 + 1
            data["steps_to_next_obs"] = count
        data["hidden"] = data["observation"].cos()
        kwargs: dict[str, Any] = {} if self.gamma is None else {"gamma": self.gamma}
        if self.given == "operator":
            width = 4 * len(self.reads)
            net = seeded(lambda: Joined(width))
            kwargs["operator"] = lib.modules.ValueOperator(net, list(self.reads), [self.key])
            kwargs["next_val_key"] = self.key
        else:
            value = data["next", "observation"][..., :1].exp().requires_grad_()
            kwargs["pred_next_val"] = value if self.given == "column" else value.squeeze(-1)
        found = lib.losses.next_state_value(data, **kwargs)
        assert not found.requires_grad
        return found, leaves(data)


class Joined(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.linear(torch.cat(inputs, -1))


ASKS = [
    Ask(shape, ends, steps, given)
    for shape, ends, steps, given in itertools.product(
        [(6,), (3, 4)], ["terminated", "never", "always", "no terminated"], [False, True],
        ["operator", "column"],
    )
] + [
    Ask(given="flat"),
    Ask(given="flat", shape=(3, 4), steps=True),
    Ask(gamma=0.5),
    Ask(gamma=0.0),
    Ask(gamma=1.0, steps=True),
    Ask(key="v"),
    Ask(reads=("observation", "hidden")),
    Ask(reads=("hidden",), key="v", shape=(2, 2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("ask", ASKS, ids=str)
def test_next_state_value(ask: Ask) -> None:
    (theirs, after), (ours, own_after) = ask.answer(THEIRS), ask.answer(OURS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_same(own_after, after, "batch after the call")


def test_next_state_value_of_a_truncated_step() -> None:
    """torchrl bootstraps nothing there; ours does, as every value estimator of both."""
    data = transitions(16)
    value = data["next", "observation"][..., :1].exp()
    theirs, ours = (
        lib.losses.next_state_value(data, pred_next_val=value, gamma=0.9) for lib in (THEIRS, OURS)
    )
    td0 = THEIRS.value.TD0Estimator(gamma=0.9, value_network=None)
    right = td0.value_estimate(data, next_value=value).squeeze(-1)
    torch.testing.assert_close(ours, right)
    cut = (data["next", "done"] & ~data["next", "terminated"]).squeeze(-1)
    assert cut.any()
    torch.testing.assert_close(theirs[~cut], right[~cut])
    torch.testing.assert_close(theirs[cut], data["next", "reward"].squeeze(-1)[cut])


# ----------------------------------------------------------------------------- target updates

NETWORKS = {
    "one": {},
    "two": {"delay_actor": True},
    "the actor's": {"delay_actor": True, "delay_critic": False},
    "copies": {"copies": 3},
    "members": {"members": 2},
}
UPDATES = {
    **{f"tau {t}": ("SoftUpdate", {"tau": t}) for t in (0.0, 0.005, 0.1, 0.5)},
    **{f"eps {e}": ("SoftUpdate", {"eps": e}) for e in (1.0, 0.995, 0.5)},
    **{f"every {n}": ("HardUpdate", {"value_network_update_interval": n}) for n in (0, 1, 2, 5)},
    "default": ("HardUpdate", {}),
}


def moved(lib: Any, networks: str, update: str) -> list[dict]:
    """All tensors of a loss, and the updater's state, after each of seven updates; the updater is
    replaced after three, and takes up its state."""
    loss = seeded(lambda: user_loss(lib, **NETWORKS[networks]))
    name, settings = UPDATES[update]
    generator, found = torch.Generator().manual_seed(3), []
    for p in sorted(dict(loss.named_parameters())):
        value = dict(loss.named_parameters())[p].data
        value.add_(torch.randn(value.shape, generator=generator))
    updater = getattr(lib.losses, name)(loss, **settings)
    for i in range(7):
        if i == 3:
            state, targets = (
                updater.state_dict(),
                {k: v.clone() for k, v in tensors_of(loss).items()},
            )
            updater = getattr(lib.losses, name)(loss, **settings)
            loss.load_state_dict(targets)
            updater.load_state_dict(state)
        for p in loss.parameters():
            p.data.mul_(0.9).add_(0.1 * i)
        updater.step()
        tensors = {k: v.clone() for k, v in tensors_of(loss).items()}
        numbers = {k: torch.tensor(float(v)) for k, v in updater.state_dict().items()}
        found.append(tensors | numbers)
    return found


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("update", UPDATES)
def test_target_updates(networks: str, update: str) -> None:
    steps = zip(moved(OURS, networks, update), moved(THEIRS, networks, update), strict=True)
    for i, (ours, theirs) in enumerate(steps):
        assert_same(ours, theirs, f"after {i + 1} updates")


@LIBRARIES
def test_updaters_refused(lib: Any) -> None:
    soft, loss = lib.losses.SoftUpdate, seeded(user_loss, lib)
    with pytest.raises(RuntimeError):
        soft(loss)
    for wrong in ({"eps": 0.9, "tau": 0.1}, {"tau": 1.5}, {"eps": 1.5}, {"tau": -0.5}):
        with pytest.raises(ValueError, match=r"."), warnings.catch_warnings(action="ignore"):
            soft(loss, **wrong)
    with pytest.raises(ValueError, match="LossModule"):
        soft(nn.Linear(1, 1), tau=0.1)
    with pytest.raises(RuntimeError):
        soft(seeded(lambda: user_loss(lib, delay_critic=False)), tau=0.1)
    with pytest.warns(UserWarning, match="eps"):
        updater = soft(loss, eps=0.4)
    assert updater.eps == pytest.approx(0.4)
    assert isinstance(updater, lib.losses.TargetNetUpdater)
    updater.load_state_dict({"initialized": False})
    with pytest.raises(Exception, match=r"init_\(\)"):
        updater.step()
    again = lib.losses.HardUpdate(loss, value_network_update_interval=3)
    again.load_state_dict({})
    assert again.state_dict() == {"initialized": True, "counter": 0}


@pytest.mark.parametrize("update", ["tau 0.5", "every 0"])
@pytest.mark.parametrize("which", ["buffers", "shared"])
def test_targets_of_what_does_not_train(update: str, which: str) -> None:
    """Running statistics, and layers that another network trains: torchrl's targets keep them as
    they were when the updater was built, beside layers that follow; all of ours follow."""
    options = {"buffers": {"norm": True}, "shared": {"shared": True, "separate": True}}[which]
    name, settings = UPDATES[update]
    follows = []
    for lib in (THEIRS, OURS):
        loss = seeded(lambda lib=lib: user_loss(lib, **options))
        updater = getattr(lib.losses, name)(loss, **settings)
        tensors = tensors_of(loss)
        online = {k: v for k, v in tensors.items() if k.startswith("critic_network_params")}
        still = {k for k in online if k not in dict(loss.named_parameters())}
        assert still
        before = {k: v.clone() for k, v in tensors.items()}
        for v in online.values():
            v.data.add_(1)
        updater.step()
        share = settings.get("tau", 1.0)
        moved = {k: tensors[f"target_{k}"] - before[f"target_{k}"] for k in online}
        assert all(torch.allclose(moved[k], torch.tensor(share)) for k in set(online) - still)
        expected = {k: share if v.is_floating_point() else 1 for k, v in online.items()}
        follows.append(all((moved[k] - expected[k]).abs().max() < 1e-5 for k in still))
        assert follows[-1] or not any(moved[k].any() for k in still)
    assert follows == [False, True]


# ----------------------------------------------------------------------------- frozen networks


@LIBRARIES
@pytest.mark.parametrize(
    "net", [nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Tanh()], ids=str
)
def test_hold_out_net(lib: Any, net: nn.Module) -> None:
    hold = lib.losses.hold_out_net(net)
    for _ in range(2):
        with hold:
            assert not any(p.requires_grad for p in net.parameters())
        assert all(p.requires_grad for p in net.parameters())
    held = hold(lambda: [p.requires_grad for p in net.parameters()])
    assert not any(held())
    assert all(p.requires_grad for p in net.parameters())


def test_a_frozen_layer_stays_frozen() -> None:
    """torchrl thaws it."""
    thawed = []
    for lib in (THEIRS, OURS):
        net = nn.Linear(2, 1)
        net.bias.requires_grad_(False)
        with lib.losses.hold_out_net(net):
            pass
        thawed.append(net.bias.requires_grad)
        assert net.weight.requires_grad
    assert thawed == [True, False]


@LIBRARIES
def test_hold_out_params(lib: Any) -> None:
    params = TensorDict.from_module(nn.Linear(2, 1))
    with lib.losses.hold_out_params(params) as held:
        assert not any(v.requires_grad for v in held.values(True, True))
        assert held["weight"].data_ptr() == params["weight"].data_ptr()
    with lib.losses.hold_out_params(nn.Linear(2, 1).parameters()) as several:
        assert isinstance(several, tuple)
        assert [v.requires_grad for v in several] == [False, False]
    assert all(v.requires_grad for v in params.values())


def test_names_of_estimators() -> None:
    ours, theirs = OURS.losses, THEIRS.losses
    assert {m.name: m.value for m in ours.ValueEstimators} == {
        m.name: m.value for m in theirs.ValueEstimators
    }
    for member in theirs.ValueEstimators:
        expected = theirs.default_value_kwargs(member)
        own = ours.ValueEstimators[member.name]
        for name in (own, member.name, member.name.lower()):
            assert ours.default_value_kwargs(name) == expected
        assert theirs.default_value_kwargs(member.name.lower()) == expected
    for lib in (ours, theirs):
        for wrong, error in (("td2", KeyError), (3, TypeError)):
            with pytest.raises(error):
                lib.default_value_kwargs(wrong)
