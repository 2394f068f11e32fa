"""Imagined environments, and how their steps are put together."""

from rlobj.envs.model_based import DreamerEnv
from rlobj.envs.utils import ExplorationType, exploration_type, set_exploration_type, step_mdp

__all__ = ["DreamerEnv", "ExplorationType", "exploration_type", "set_exploration_type", "step_mdp"]
