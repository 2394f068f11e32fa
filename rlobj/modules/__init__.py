"""Networks, actors and distributions that the losses' examples use."""

from tensordict.nn import NormalParamExtractor

from rlobj.modules.actors import MLP, Actor, ProbabilisticActor, SafeModule, ValueOperator
from rlobj.modules.decision_transformer import DecisionTransformer
from rlobj.modules.distributions import (
    Delta,
    Dropout,
    IndependentNormal,
    TanhDelta,
    TanhNormal,
    deterministic_sample,
    rsample_and_log_prob,
)

__all__ = [
    "MLP",
    "Actor",
    "DecisionTransformer",
    "Delta",
    "Dropout",
    "IndependentNormal",
    "NormalParamExtractor",
    "ProbabilisticActor",
    "SafeModule",
    "TanhDelta",
    "TanhNormal",
    "ValueOperator",
    "deterministic_sample",
    "rsample_and_log_prob",
]
