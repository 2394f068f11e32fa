"""rlobj: reinforcement-learning objectives on torch and tensordict."""

from rlobj.a2c import A2CLoss
from rlobj.awac import AWACLoss
from rlobj.bc import BCLoss
from rlobj.cal_ql import CalQLLoss
from rlobj.common import LossModule
from rlobj.cql import CQLLoss
from rlobj.ddpg import DDPGLoss
from rlobj.decision_transformer import DTLoss, OnlineDTLoss
from rlobj.discrete_cql import DiscreteCQLLoss
from rlobj.dqn import DistributionalDQNLoss, DQNLoss
from rlobj.dreamer import DreamerActorLoss, DreamerModelLoss, DreamerValueLoss
from rlobj.edac import EDACLoss
from rlobj.iql import DiscreteIQLLoss, IQLLoss
from rlobj.multiagent import QMixerLoss
from rlobj.ppo import ClipPPOLoss, KLPENPPOLoss, PPOLoss
from rlobj.rebrac import ReBRACLoss
from rlobj.redq import REDQLoss
from rlobj.reinforce import ReinforceLoss
from rlobj.sac import DiscreteSACLoss, SACLoss
from rlobj.td3 import TD3Loss
from rlobj.td3_bc import TD3BCLoss
from rlobj.utils import (
    HardUpdate,
    SoftUpdate,
    TargetNetUpdater,
    ValueEstimators,
    default_value_kwargs,
    distance_loss,
    hold_out_net,
    hold_out_params,
    next_state_value,
)
from rlobj.xql import XQLLoss

__all__ = [
    "A2CLoss",
    "AWACLoss",
    "BCLoss",
    "CQLLoss",
    "CalQLLoss",
    "ClipPPOLoss",
    "DDPGLoss",
    "DQNLoss",
    "DTLoss",
    "DiscreteCQLLoss",
    "DiscreteIQLLoss",
    "DiscreteSACLoss",
    "DistributionalDQNLoss",
    "DreamerActorLoss",
    "DreamerModelLoss",
    "DreamerValueLoss",
    "EDACLoss",
    "HardUpdate",
    "IQLLoss",
    "KLPENPPOLoss",
    "LossModule",
    "OnlineDTLoss",
    "PPOLoss",
    "QMixerLoss",
    "REDQLoss",
    "ReBRACLoss",
    "ReinforceLoss",
    "SACLoss",
    "SoftUpdate",
    "TD3BCLoss",
    "TD3Loss",
    "TargetNetUpdater",
    "ValueEstimators",
    "XQLLoss",
    "default_value_kwargs",
    "distance_loss",
    "hold_out_net",
    "hold_out_params",
    "next_state_value",
]
