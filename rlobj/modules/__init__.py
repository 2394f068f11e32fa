"""Networks, actors and distributions that the losses' examples use."""

from tensordict.nn import NormalParamExtractor

from rlobj.modules.actors import Actor, ProbabilisticActor, SafeModule, ValueOperator
from rlobj.modules.decision_transformer import TimedDTActor
from rlobj.modules.discrete import OneHotCategorical, ReparamGradientStrategy
from rlobj.modules.distributional import (
    DistributionalDQNnet,
    DistributionalQValueActor,
    DistributionalQValueModule,
)
from rlobj.modules.distributions import (
    Delta,
    Dropout,
    IndependentNormal,
    TanhDelta,
    TanhNormal,
    deterministic_sample,
    rsample_and_log_prob,
)
from rlobj.modules.dt_actors import DecisionTransformer, DTActor, DTConfig, OnlineDTActor
from rlobj.modules.mlp import MLP
from rlobj.modules.qvalue import QValueActor, QValueHook, QValueModule
from rlobj.modules.truncated import TruncatedNormal

__all__ = [
    "MLP",
    "Actor",
    "DTActor",
    "DTConfig",
    "DecisionTransformer",
    "Delta",
    "DistributionalDQNnet",
    "DistributionalQValueActor",
    "DistributionalQValueModule",
    "Dropout",
    "IndependentNormal",
    "NormalParamExtractor",
    "OneHotCategorical",
    "OnlineDTActor",
    "ProbabilisticActor",
    "QValueActor",
    "QValueHook",
    "QValueModule",
    "ReparamGradientStrategy",
    "SafeModule",
    "TanhDelta",
    "TanhNormal",
    "TimedDTActor",
    "TruncatedNormal",
    "ValueOperator",
    "deterministic_sample",
    "rsample_and_log_prob",
]
