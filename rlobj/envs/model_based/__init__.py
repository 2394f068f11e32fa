"""Environments whose steps are a world model's predictions."""

from rlobj.envs.model_based.dreamer import DreamerEnv

__all__ = ["DreamerEnv"]
