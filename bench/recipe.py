"""What a recipe is, and how recipes are found: one module per algorithm in ``bench/recipes``."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensordict import TensorDict
from torch import Tensor

from bench.engine.agent import Agent
from bench.engine.sampling import Source
from bench.errors import ConfigError
from bench.recipes import check_name
from rlobj import LossModule
from rlobj.specs import Bounded, Categorical


@dataclass(frozen=True)
class Problem:
    """What a network builder needs to know of the data: sizes and bounds.

    ``space`` holds the bounds of continuous actions ``[a]`` or the number of discrete ones;
    ``max_timestep`` is the longest episode, for sequence models.
    """

    observation: int
    space: Bounded | Categorical
    max_timestep: int = 1000
    mean: Tensor | None = None  # observation normalisation, part of the policy
    std: Tensor | None = None

    @property
    def action(self) -> Bounded:
        """The bounds of continuous actions."""
        assert isinstance(self.space, Bounded), "the actions are discrete"
        return self.space

    @property
    def n_actions(self) -> int:
        """How many discrete actions there are."""
        assert isinstance(self.space, Categorical), "the actions are continuous"
        return int(self.space.n)


@dataclass(frozen=True)
class Explore:
    """How an algorithm acts while it collects data.

    ``act(loss, observed)`` is traced; it finds under ``"noise"`` what ``draw(rng, step)`` drew for
    the environment step ``step``.
    """

    act: Callable[[LossModule, TensorDict], Tensor]
    draw: Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Published:
    """Scores that a recipe answers to: ``dataset -> (mean, sd, n seeds)``, normalised, final."""

    source: str
    scores: Mapping[str, tuple[float, float | None, int | None]]


@dataclass(frozen=True)
class Recipe:
    """An algorithm as the benchmark runs it.

    Args:
        name, label: how it is asked for, and its usual name in tables.
        paper: citation of the defaults.
        hyper: frozen dataclass of hyper-parameters; its defaults are the paper's.
        build: networks, loss and phases from hyper-parameters and a problem.
        table: the training table from hyper-parameters and a dataset's transitions (reward
            scaling, filtering); observations are normalised by the runner where ``normalize``.
        sampler: minibatches from hyper-parameters, table and device; with ``file`` the table stays
            in a file that begins with that path.
        quick: hyper-parameters that differ in the quick profile.
        overrides: ``(dataset pattern, hyper-parameters)``, applied in order.
        eval_interval, eval_episodes: the paper's evaluations, for the paper profile.
        sequence: the policy sees the episode so far (Decision Transformer).
        discrete: the actions are numbers 0..n-1.
        pictures: observations may be pictures, too, which it gets as vectors.
        families: of the datasets that it can train on; all of them if there are none.
        explore: how it acts in an environment, from hyper-parameters (of which ``start_steps``
            says how many uniform actions come first) and a problem; None: it trains on data only.
        published: the paper's numbers, for verdicts.
    """

    name: str
    label: str
    paper: str
    hyper: type
    build: Callable[[Any, Problem], Agent]
    table: Callable[[Any, TensorDict], TensorDict]
    sampler: Callable[..., Source]
    quick: Mapping[str, Any]
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    steps: int = 1_000_000
    quick_steps: int = 40_000
    eval_interval: int = 5_000  # of the paper profile
    eval_episodes: int = 10
    sequence: bool = False
    discrete: bool = False
    pictures: bool = False
    families: tuple[str, ...] = ()
    explore: Callable[[Any, Problem], Explore] | None = None
    published: Published | None = None

    def hyperparameters(
        self, names: tuple[str, ...], profile: str, settings: Mapping[str, str]
    ) -> Any:
        """Resolved hyper-parameters: defaults, then overrides of the dataset (matched by any of
        its ``names``: id and family aliases), then the profile, then ``--set``."""
        chosen: dict[str, Any] = {}
        for pattern, values in self.overrides:
            if any(fnmatch.fnmatch(n, pattern) for n in names):
                chosen.update(values)
        if profile == "quick":
            chosen.update(self.quick)
        chosen.update(parsed(self, settings))
        return dataclasses.replace(self.hyper(), **chosen)


def parsed(recipe: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings in the types of an algorithm's hyper-parameters. Raises ConfigError."""
    fields = {f.name: f for f in dataclasses.fields(recipe.hyper)}
    defaults = recipe.hyper()
    parsed = {}
    for key, text in settings.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else f": it has {', '.join(fields)}"
            raise ConfigError(f"--set {key}: {recipe.name} has no such hyper-parameter{hint}")
        parsed[key] = _value(recipe, key, text, getattr(defaults, key))
        _check_range(recipe, key, text, parsed[key])
    return parsed


def _value(recipe: Recipe, key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
        if isinstance(default, tuple):
            kind = type(default[0]) if default else float
            return tuple(kind(part) for part in text.split(",") if part)
        return text
    except (ValueError, KeyError):
        kinds = {"int": "whole number", "bool": "true or false", "float": "number"}
        wanted = kinds.get(type(default).__name__, "list of numbers, like 64,64")
        raise ConfigError(f"--set {key}={text}: {recipe.name} expects a {wanted} there") from None


def _check_range(recipe: Recipe, key: str, text: str, value: Any) -> None:
    """Refuse what trains without complaint and learns nothing: rates and discounts go by their
    names, and no number may be infinite or nan."""
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(math.isfinite(n) for n in numbers if isinstance(n, float)):
        wanted, good = "a finite number", False
    elif key.startswith("lr") or key.endswith("_lr"):
        wanted, good = "a number above 0", value > 0
    elif key in ("gamma", "discount"):
        wanted, good = "a number from 0 to 1", 0 <= value <= 1
    elif key == "tau":
        wanted, good = "a number above 0 and at most 1", 0 < value <= 1
    else:
        return
    if not good:
        raise ConfigError(f"--set {key}={text}: {recipe.name} expects {wanted} there")


def load_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ConfigError with the nearest names."""
    check_name(name)
    return importlib.import_module(f"bench.recipes.{name}").RECIPE
