"""Value estimators and their functional forms."""

from rlobj.utils import ValueEstimators
from rlobj.value.advantages import TD0Estimator, ValueEstimatorBase

ESTIMATORS = {ValueEstimators.TD0: TD0Estimator}

__all__ = ["ESTIMATORS", "TD0Estimator", "ValueEstimatorBase"]
