"""DTLoss and OnlineDTLoss against torchrl, on actors small enough to follow.

torchrl's own Decision Transformer needs `transformers`; the losses are the same whatever the actor.
"""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from tests.parity.harness import Config, compare, compare_keywords, libraries

pytestmark = pytest.mark.parity

KEYS = ["observation", "action", "return_to_go"]
ACT = 2
LOW, HIGH = torch.tensor([-2.0, -1.0]), torch.tensor([1.0, 3.0])


class Window(nn.Module):
    """Each step's inputs, and what came before as a running mean."""

    def __init__(self, parts: int, action: int = ACT) -> None:
        super().__init__()
        self.parts = parts
        self.net = nn.Sequential(nn.Linear(5 + action, 6), nn.Tanh(), nn.Linear(6, parts * action))

    def forward(self, observation, action, return_to_go):
        x = self.net(torch.cat([observation, action, return_to_go], -1))
        steps = torch.arange(1, x.shape[-2] + 1).unsqueeze(-1)
        x = x + 0.3 * x.cumsum(-2) / steps
        return x if self.parts == 1 else (x.chunk(2, -1)[0], 0.1 + x.chunk(2, -1)[1].exp())


def windows(*shape, action=ACT, mask=None, key="action", low=-1.0, high=1.0):
    """Windows ``[*shape]`` whose last axis is time; ``mask`` names where padding is marked."""

    def make():
        generator = torch.Generator().manual_seed(4)

        def draw(size):
            return torch.randn(*shape, size, generator=generator)

        data = TensorDict({"observation": draw(4), "action": draw(action)}, list(shape))
        data["return_to_go"] = draw(1)
        data["action"] = low + (high - low) * data["action"].sigmoid()
        if key != "action":
            data[key] = low + (high - low) * draw(action).sigmoid()
        keep = torch.rand(*shape, generator=generator) > 0.3
        for k in mask or ():
            data[k] = keep.unsqueeze(-1) if k == "shifted_valid" else keep
            keep = torch.rand(*shape, generator=generator) > 0.3
        return data

    return make


def point_actor(lib, out="action", bounds=None, action=ACT, delta=False):
    """A deterministic actor: a bare module, or a point mass."""
    if not delta:
        spec = lib.specs.Unbounded((action,))
        return lib.modules.Actor(Window(1, action), in_keys=KEYS, out_keys=[out], spec=spec)
    return lib.modules.ProbabilisticActor(
        TensorDictModule(Window(1, action), in_keys=KEYS, out_keys=["param"]),
        in_keys=["param"],
        out_keys=[out],
        distribution_class=lib.modules.TanhDelta,
        distribution_kwargs=bounds or {},
        spec=lib.specs.Bounded(-torch.ones(action), torch.ones(action)),
    )


def dt(actor=None, set_keys=None, mask_key="auto", **kwargs):
    def build(lib):
        loss = lib.losses.DTLoss(point_actor(lib, **(actor or {})), **kwargs)
        loss.set_keys(**(set_keys or {}))
        loss.loss_mask_key = mask_key
        return loss

    return build


SCALED = {"low": -2.0 * torch.ones(ACT), "high": 2.0 * torch.ones(ACT)}
BOTH = [("collector", "mask"), "shifted_valid"]
SHAPES = {"time": (6,), "batch and time": (3, 6), "two batch axes": (2, 3, 5), "one step": (4, 1)}
REDUCED = [(f, r) for f in ("l1", "l2", "smooth_l1") for r in ("none", "mean", "sum")]

DT = [
    *(Config(f"{f}, {r}", dt(loss_function=f, reduction=r), windows(3, 6)) for f, r in REDUCED),
    *(Config(f"shape: {k}", dt(), windows(*shape)) for k, shape in SHAPES.items()),
    *(
        Config(f"masked, {r}", dt(reduction=r), windows(3, 6, mask=BOTH[:1]))
        for r in ("none", "mean", "sum")
    ),
    Config("two masks", dt(), windows(3, 6, mask=BOTH)),
    Config("own mask", dt(mask_key="valid"), windows(3, 6, mask=["valid", BOTH[0]])),
    Config("no mask", dt(mask_key=None), windows(3, 6, mask=BOTH)),
    Config("mask, smooth_l1", dt(loss_function="smooth_l1"), windows(2, 3, 5, mask=BOTH)),
    Config("recorded elsewhere", dt(set_keys={"action_target": "seen"}), windows(3, 6, key="seen")),
    Config(
        "nested target",
        dt(set_keys={"action_target": ("expert", "move")}, loss_function="l1"),
        windows(3, 6, key=("expert", "move")),
    ),
    Config(
        "predicted elsewhere",
        dt({"out": "guess"}, set_keys={"action_pred": "guess"}),
        windows(3, 6),
    ),
    Config("point mass", dt({"delta": True}), windows(3, 6)),
    Config("point mass, bounds", dt({"delta": True, "bounds": SCALED}), windows(3, 6)),
    Config("one action", dt({"action": 1}), windows(3, 6, action=1)),
    Config("torchrl's modules", dt(), windows(3, 6), own_modules=False),
    Config(
        "torchrl's point mass",
        dt({"delta": True, "bounds": {"low": LOW, "high": HIGH}}, loss_function="l1"),
        windows(3, 6),
        own_modules=False,
    ),
]


def random_actor(lib, distribution="TanhNormal", bounds=None, action=ACT, out="action", spec=True):
    box = lib.specs.Bounded(-torch.ones(action), torch.ones(action))
    return lib.modules.ProbabilisticActor(
        TensorDictModule(Window(2, action), in_keys=KEYS, out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[out],
        distribution_class=getattr(lib.modules, distribution),
        distribution_kwargs=bounds or {},
        spec=box if spec else None,
    )


def online(actor=None, set_keys=None, **kwargs):
    def build(lib):
        loss = lib.losses.OnlineDTLoss(random_actor(lib, **(actor or {})), **kwargs)
        if set_keys:
            loss.set_keys(**set_keys)
            if lib.name == "torchrl":
                loss._set_in_keys()  # set_keys leaves in_keys as they were
        return loss

    return build


ASYMMETRIC = {"low": LOW, "high": HIGH}

ONLINE = [
    *(Config(f"shape: {k}", online(), windows(*shape)) for k, shape in SHAPES.items()),
    *(Config(f"{n} samples", online(samples_mc_entropy=n), windows(3, 6)) for n in (2, 5)),
    *(Config(f"target {t}", online(target_entropy=t), windows(3, 6)) for t in (-7.0, 0.0, 1.5)),
    *(Config(f"alpha {a}", online(alpha_init=a), windows(3, 6)) for a in (0.1, 3.0)),
    Config("fixed alpha", online(fixed_alpha=True, alpha_init=0.4), windows(3, 6)),
    Config("fixed alpha in a range",
           online(fixed_alpha=True, alpha_init=5.0, min_alpha=0.1, max_alpha=2.0), windows(3, 6)),
    Config("range", online(min_alpha=0.1, max_alpha=10.0), windows(3, 6)),
    Config("only a floor", online(min_alpha=0.5), windows(3, 6)),
    Config("only a ceiling", online(max_alpha=4.0), windows(3, 6)),
    Config("above its range", online(alpha_init=5.0, max_alpha=2.0, min_alpha=0.1), windows(3, 6)),
    Config("below its range", online(alpha_init=0.01, min_alpha=0.2), windows(3, 6)),
    Config("held at the ceiling",
           online(alpha_init=2.0, max_alpha=2.0, target_entropy=9.0), windows(3, 6)),
    Config("sum", online(reduction="sum"), windows(3, 6)),
    Config("none", online(reduction="none"), windows(3, 6)),
    Config("none, scalars out", online(reduction="none", scalar_output_mode="exclude"),
           windows(3, 6)),
    Config("none, scalars aside", online(reduction="none", scalar_output_mode="non_tensor"),
           windows(3, 6)),
    *(Config(f"masked, {r}", online(reduction=r), windows(3, 6, mask=BOTH[:1]))
      for r in ("mean", "sum")),
    Config("two masks", online(samples_mc_entropy=3), windows(2, 3, 5, mask=BOTH)),
    Config("asymmetric bounds", online({"bounds": ASYMMETRIC}), windows(3, 6, low=LOW, high=HIGH)),
    Config("Gaussian", online({"distribution": "IndependentNormal"}), windows(3, 6)),
    Config("bounded location", online({"bounds": {"tanh_loc": True, "upscale": 2.0}}),
           windows(3, 6)),
    Config("one action", online({"action": 1}), windows(3, 6, action=1)),
    Config("no spec", online({"spec": False}, target_entropy=-2.0), windows(3, 6)),
    Config("recorded elsewhere", online(set_keys={"action_target": "seen"}),
           windows(3, 6, key="seen")),
    Config("torchrl's modules", online(), windows(3, 6), own_modules=False),
    Config("torchrl's modules, bounds, mask",
           online({"bounds": ASYMMETRIC}, samples_mc_entropy=2, max_alpha=3.0),
           windows(3, 6, low=LOW, high=HIGH, mask=BOTH), own_modules=False),
]  # fmt: skip


@pytest.mark.parametrize("config", DT, ids=lambda c: c.name)
def test_dt_equals_torchrl(config: Config) -> None:
    compare(config)


@pytest.mark.parametrize("config", ONLINE, ids=lambda c: c.name)
def test_online_dt_equals_torchrl(config: Config) -> None:
    compare(config)


def test_keywords() -> None:
    compare_keywords(Config("keywords", online(), windows(3, 6)))


def test_actions_with_gradient() -> None:
    data = windows(3, 6)()
    data["action"].requires_grad_()
    for lib in libraries():
        with pytest.raises(RuntimeError):
            online()(lib)(data)
