"""rlobj: reinforcement-learning objectives on torch and tensordict."""

from rlobj.awac import AWACLoss
from rlobj.bc import BCLoss
from rlobj.common import LossModule
from rlobj.cql import CQLLoss
from rlobj.ddpg import DDPGLoss
from rlobj.decision_transformer import DTLoss
from rlobj.discrete_cql import DiscreteCQLLoss
from rlobj.dqn import DistributionalDQNLoss, DQNLoss
from rlobj.edac import EDACLoss
from rlobj.iql import DiscreteIQLLoss, IQLLoss
from rlobj.rebrac import ReBRACLoss
from rlobj.redq import REDQLoss
from rlobj.sac import DiscreteSACLoss, SACLoss
from rlobj.td3 import TD3Loss
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
    "AWACLoss",
    "BCLoss",
    "CQLLoss",
    "DDPGLoss",
    "DQNLoss",
    "DTLoss",
    "DiscreteCQLLoss",
    "DiscreteIQLLoss",
    "DiscreteSACLoss",
    "DistributionalDQNLoss",
    "EDACLoss",
    "HardUpdate",
    "IQLLoss",
    "LossModule",
    "REDQLoss",
    "ReBRACLoss",
    "SACLoss",
    "SoftUpdate",
    "TD3BCLoss",
    "TD3Loss",
    "ValueEstimators",
    "default_value_kwargs",
    "distance_loss",
    "hold_out_net",
    "hold_out_params",
]
