"""Who trains in an environment: the on-policy agents of this package, one module each, and every
recipe that says how it explores (``Recipe.explore``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.online.collect import Training
    from bench.online.rollouts import OnPolicy
    from bench.recipe import Recipe


def load_agent(name: str) -> OnPolicy | Recipe:
    """The agent of that name. Raises ConfigError with the nearest names."""
    if (Path(__file__).parent / f"{name}.py").is_file():
        return importlib.import_module(f"{__name__}.{name}").AGENT
    from bench.recipe import load_recipe

    return load_recipe(name)


def training_of(agent: OnPolicy | Recipe) -> type[Training]:
    """How an agent trains in an environment."""
    from bench.online.collect import Collection
    from bench.online.rollouts import OnPolicy, Rollouts

    return Rollouts if isinstance(agent, OnPolicy) else Collection
