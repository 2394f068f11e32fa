"""Networks, actors and distributions that the losses' examples use."""

from tensordict.nn import NormalParamExtractor

from rlobj.modules.actors import MLP, Actor, ProbabilisticActor, SafeModule, ValueOperator
from rlobj.modules.decision_transformer import DecisionTransformer
from rlobj.modules.discrete import OneHotCategorical, ReparamGradientStrategy
from rlobj.modules.distributions import (
    Delta,
    Dropout,
    IndependentNormal,
    TanhDelta,
    TanhNormal,
    deterministic_sample,
    rsample_and_log_prob,
)
from rlobj.modules.qvalue import (
    DistributionalDQNnet,
    DistributionalQValueActor,
    DistributionalQValueModule,
    QValueActor,
    QValueHook,
    QValueModule,
)
from rlobj.modules.truncated import TruncatedNormal

__all__ = [
    "MLP",
    "Actor",
    "DecisionTransformer",
    "Delta",
    "DistributionalDQNnet",
    "DistributionalQValueActor",
    "DistributionalQValueModule",
    "Dropout",
    "IndependentNormal",
    "NormalParamExtractor",
    "OneHotCategorical",
    "ProbabilisticActor",
    "QValueActor",
    "QValueHook",
    "QValueModule",
    "ReparamGradientStrategy",
    "SafeModule",
    "TanhDelta",
    "TanhNormal",
    "TruncatedNormal",
    "ValueOperator",
    "deterministic_sample",
    "rsample_and_log_prob",
]
