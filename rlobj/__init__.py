"""rlobj: reinforcement-learning objectives on torch and tensordict."""

from rlobj.bc import BCLoss
from rlobj.common import LossModule
from rlobj.cql import CQLLoss
from rlobj.decision_transformer import DTLoss
from rlobj.iql import IQLLoss
from rlobj.sac import SACLoss
from rlobj.td3_bc import TD3BCLoss
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
    "BCLoss",
    "CQLLoss",
    "DTLoss",
    "HardUpdate",
    "IQLLoss",
    "LossModule",
    "SACLoss",
    "SoftUpdate",
    "TD3BCLoss",
    "ValueEstimators",
    "default_value_kwargs",
    "distance_loss",
    "hold_out_net",
    "hold_out_params",
]
