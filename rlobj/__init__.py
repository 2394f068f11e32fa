"""rlobj: reinforcement-learning objectives on torch and tensordict."""

from rlobj.common import LossModule
from rlobj.sac import SACLoss
from rlobj.utils import (
    HardUpdate,
    SoftUpdate,
    ValueEstimators,
    default_value_kwargs,
    distance_loss,
    hold_out_net,
    hold_out_params,
)

__all__ = [
    "HardUpdate",
    "LossModule",
    "SACLoss",
    "SoftUpdate",
    "ValueEstimators",
    "default_value_kwargs",
    "distance_loss",
    "hold_out_net",
    "hold_out_params",
]
