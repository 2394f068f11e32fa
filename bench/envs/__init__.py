"""Environments of other packages and of our own, made known to gymnasium when one is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Environments of packages that need not be installed, by the module that brings them.
_PACKAGES = {
    "gymnasium_robotics": "AdroitHand|(bench/)?FrankaKitchen|AntMaze|PointMaze|Fetch|HandReach",
    "ale_py": "ALE/",
    "minigrid": "MiniGrid-|BabyAI-",
}


def _kitchen(limit: int, tasks: Sequence[str]) -> dict[str, Any]:
    """FrankaKitchen-v1 as Minari recorded in it: with four subtasks, each of which pays 1 at every
    step at which it is done, and all of which together do not end the episode."""
    kept = {"remove_task_when_completed": False, "terminate_on_tasks_completed": False}
    return {
        "entry_point": "gymnasium_robotics.envs.franka_kitchen:KitchenEnv",
        "max_episode_steps": limit,
        "kwargs": {"tasks_to_complete": list(tasks), **kept},
    }


_SLIDE = ("microwave", "kettle", "light switch", "slide cabinet")
_BURNER = ("microwave", "kettle", "bottom burner", "light switch")
_OURS: dict[str, dict[str, Any]] = {  # what gymnasium.register takes
    "bench/TwoStep-v0": {"entry_point": "bench.envs.two_step:TwoStep"},
    "bench/PixelPendulum-v0": {"entry_point": "bench.envs.pixels:pendulum"},
    "bench/FrankaKitchen-complete-v1": _kitchen(280, _SLIDE),
    "bench/FrankaKitchen-partial-v1": _kitchen(450, _SLIDE),
    "bench/FrankaKitchen-mixed-v1": _kitchen(450, _BURNER),
}
# These pay for the distance between palm and object, which D4RL charges (their pull request 220).
_WRONG_SIGN = r"AdroitHand(Door|Hammer|Relocate)-v1"
_WRONG_FROM, _WRONG_TO = (1, 2, 1), (1, 4, 2)


def register(env_id: str) -> None:
    """Make gymnasium know the environments that ``env_id`` is one of."""
    import gymnasium

    if env_id.startswith("bench/"):
        for name, facts in _OURS.items():
            if name not in gymnasium.registry:
                gymnasium.register(name, **facts)
    module = _module(env_id)
    if module and importlib.util.find_spec(module):
        gymnasium.register_envs(_imported(module))


def _imported(module: str) -> Any:
    """The module, without what gymnasium-robotics says of three of its environments whenever it is
    imported (:func:`caution` says it of those only)."""
    with redirect_stderr(io.StringIO()) as said:
        found = importlib.import_module(module)
    for line in said.getvalue().splitlines():
        if not line.startswith("AdroitHand"):
            print(line, file=sys.stderr)
    return found


def caution(env_id: str) -> str:
    """What is wrong with an environment in the version that is installed; empty if nothing is
    known."""
    if not re.fullmatch(_WRONG_SIGN, env_id):
        return ""
    version = importlib.metadata.version("gymnasium-robotics")
    if not _WRONG_FROM <= tuple(map(int, re.findall(r"\d+", version)[:3])) <= _WRONG_TO:
        return ""
    return (
        f"{env_id} of gymnasium-robotics {version} pays for the distance between palm and object, "
        "which D4RL charges: evaluations return too much, up to about 0.2 per metre and step"
    )


def with_options(env_id: str, options: Mapping[str, Any], limit: Any) -> str | None:
    """Our name for an environment that is made with these options and this limit of steps."""
    base = f"bench/{re.sub(r'-v[0-9]+$', '', env_id)}-"
    for name, facts in _OURS.items():
        wanted = (facts.get("kwargs"), facts.get("max_episode_steps"))
        if name.startswith(base) and wanted == (options, limit):
            return name
    return None


def package(env_id: str) -> str | None:
    """The distribution that brings an environment; None if it is gymnasium's own or ours."""
    module = _module(env_id)
    return module and module.replace("_", "-")


def _module(env_id: str) -> str | None:
    return next((name for name, ids in _PACKAGES.items() if re.match(ids, env_id)), None)


def flat(env: Any) -> Any:
    """The environment with a dictionary of observations as one vector, by sorted key; others as
    they are. PointMaze gives achieved goal (x, y), desired goal (x, y), x, y and their speeds."""
    from gymnasium.spaces import Dict
    from gymnasium.wrappers import FlattenObservation

    return FlattenObservation(env) if isinstance(env.observation_space, Dict) else env


def behind(env_id: str) -> tuple[str, Callable[[np.ndarray], np.ndarray] | None]:
    """The environment to train in for data of ``env_id``, and how its observations ``[n, d]``
    look in the other; pictures show what is trained on as numbers."""
    if env_id == "bench/PixelPendulum-v0":
        from bench.envs.pixels import frames

        return "Pendulum-v1", frames
    return env_id, None
