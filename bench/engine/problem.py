"""From a dataset to what recipes build on: sizes and bounds, and the table they train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict

from bench.recipe import Problem
from rlobj.specs import Bounded, Categorical


def problem_of(dataset: Any, hyper: Any) -> Problem:
    """Sizes, action space and observation normalisation of a dataset. Pictures count as vectors of
    their pixels, from -0.5 to 0.5."""
    data = dataset.transitions
    bounds = (dataset.action_low, dataset.action_high)
    spec = Categorical(dataset.n_actions) if dataset.discrete else Bounded(*bounds)
    observation = data["observation"]
    size = observation[0].numel()
    mean = std = None
    if observation.dtype == torch.uint8:
        mean, std = torch.full((size,), 127.5), torch.full((size,), 255.0)
    elif hyper.normalize:
        mean = observation.mean(0)
        std = observation.std(0, correction=0) + hyper.normalize_eps
    longest = max(int(data["t"].max()) + 1, dataset.horizon or 0, 1000)
    return Problem(size, spec, longest, mean, std)


def to_json(problem: Problem) -> dict[str, Any]:
    """Numbers read back bit for bit."""
    discrete = isinstance(problem.space, Categorical)
    tensors = {"mean": problem.mean, "std": problem.std}
    if not discrete:
        tensors |= {"low": problem.action.low, "high": problem.action.high}
    found = {name: None if t is None else t.tolist() for name, t in tensors.items()}
    sizes = {"observation": problem.observation, "max_timestep": problem.max_timestep}
    return {**found, **sizes, "n_actions": problem.n_actions if discrete else 0}


def from_json(found: Mapping[str, Any]) -> Problem:
    kinds = ("low", "high", "mean", "std")
    tensor = {k: torch.tensor(found[k]) for k in kinds if found.get(k) is not None}
    n = found["n_actions"]
    space = Categorical(n) if n else Bounded(tensor.pop("low"), tensor.pop("high"))
    return Problem(found["observation"], space, found["max_timestep"], **tensor)


def recipe_table(recipe: Any, hyper: Any, data: TensorDict) -> TensorDict:
    """The recipe's table, of transitions over as many steps as its settings ask for."""
    table: TensorDict = recipe.table(hyper, data)
    steps = getattr(hyper, "n_step", 1)
    if steps == 1:
        return table
    from bench.data.views import n_step

    return n_step(table, data["t"], steps, hyper.gamma)


def training_table(recipe: Any, hyper: Any, data: TensorDict, problem: Problem) -> TensorDict:
    """The recipe's table with normalised observations."""
    table = recipe_table(recipe, hyper, data).copy()
    if problem.mean is not None:
        for key in ("observation", ("next", "observation")):
            if key in table.keys(True, True):
                table.set(key, (table[key].flatten(1) - problem.mean) / problem.std)
    return table
