"""Batches, specs and networks over discrete actions, built from either library's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn

from tests.parity.harness import Config, soft, transitions

OBSERVATION, ACTIONS, WIDTHS = 4, 5, (2, 3)
TIME = (None, "time")
LEFT_BEHIND = ("logits",)  # torchrl's actors leave these in the batch


def spec_of(lib: Any, space: str) -> Any:
    if space == "mult_one_hot":
        return lib.specs.MultiOneHot(WIDTHS)
    names = {"one_hot": "OneHot", "categorical": "Categorical", "binary": "Binary"}
    return getattr(lib.specs, names[space])(ACTIONS)


def actions(space: str, scores: Tensor) -> Tensor:
    """An action per state, from random scores ``[*batch, ACTIONS]``."""
    if space == "binary":
        return (scores > 0).long()
    if space == "mult_one_hot":
        parts = scores.split(WIDTHS, -1)
        return torch.cat([actions("one_hot", p) for p in parts], -1)
    index = scores.argmax(-1)
    if space == "categorical":
        return index
    return nn.functional.one_hot(index, scores.shape[-1])


def batch(
    *shape: int,
    space: str = "one_hot",
    column: bool = False,
    names: tuple[str | None, ...] | None = None,
    rename: Mapping[NestedKey, NestedKey] | None = None,
    drop: tuple[NestedKey, ...] = (),
    unknown_ends: bool = False,
    seed: int = 0,
    **more: Callable[[tuple[int, ...], torch.Generator], Tensor],
) -> TensorDict:
    """Transitions with discrete actions; ``more`` names functions of :data:`EXTRAS`. Where
    ``unknown_ends``, there are no terminal observations, and no truncation."""
    shape = shape or (12,)
    data = transitions(*shape, seed=seed)
    generator = torch.Generator().manual_seed(seed + 50)
    action = actions(space, torch.randn(*shape, ACTIONS, generator=generator))
    data["action"] = action.unsqueeze(-1) if column else action
    for key, draw in more.items():
        data[("collector", "mask") if key == "mask" else key] = draw(shape, generator)
    if unknown_ends:
        over = data["next", "terminated"]
        data["next", "done"] = over.clone()
        data["next", "observation"] = data["next", "observation"].masked_fill(over, torch.inf)
    for old, new in (rename or {}).items():
        data.rename_key_(old, new)
    data = data.exclude(*drop)
    data.names = list(names) if names else [None] * len(shape)
    return data


EXTRAS = {
    "mask": lambda shape, g: torch.rand(shape, generator=g) < 0.7,
    "priority_weight": lambda shape, g: torch.rand(shape, generator=g) + 0.1,
    "steps_to_next_obs": lambda shape, g: torch.randint(1, 4, (*shape, 1), generator=g),
    "allowed": lambda shape, g: torch.rand(*shape, ACTIONS, generator=g) < 0.8,
}


def extra(*names: str) -> dict[str, Any]:
    return {name: EXTRAS[name] for name in names}


def mlp(outputs: int = ACTIONS) -> nn.Module:
    return nn.Sequential(nn.Linear(OBSERVATION, 6), nn.Tanh(), nn.Linear(6, outputs))


def settle(
    loss: Any,
    keys: Mapping[str, NestedKey] | None = None,
    estimator: str | None = None,
    **hyper: Any,
) -> Any:
    """Keys and estimator, in the order of upstream's examples."""
    if keys:
        loss.set_keys(**keys)
    if estimator or hyper:
        loss.make_value_estimator(estimator, **hyper)
    return loss


def configs(
    build: Callable[..., Any],
    table: Mapping[str, tuple[dict, dict] | tuple[dict, dict, dict]],
    skip: tuple[str, ...] = (),
) -> list[Config]:
    """A table of name -> (arguments of ``build``, arguments of :func:`batch`[, of Config]).

    ``size`` of the second is the batch's shape. Targets move softly unless the third says else.
    """
    made = []
    for name, (built, given, *rest) in table.items():
        given = dict(given)
        size = given.pop("size", ())
        made.append(
            Config(
                name,
                lambda lib, built=built: build(lib, **built),
                lambda size=size, given=given: batch(*size, **given),
                **{"updater": soft(), "skip": skip, **(rest[0] if rest else {})},
            )
        )
    return made
