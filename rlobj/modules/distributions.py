"""Action distributions that draw through :mod:`rlobj.noise`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributions as D

from rlobj import noise

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_TANH_EDGE = 1e-6  # keeps atanh of a stored action finite


def _normal_log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    z = (x - loc) / scale
    return -0.5 * z * z - scale.log() - _HALF_LOG_2PI


class _Diagonal(D.Distribution):
    """A distribution over vectors whose last axis is the event."""

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    def _base_sample(self, sample_shape: Any) -> Tensor:
        shape = (*tuple(sample_shape), *self.loc.shape)
        return self.loc + self.scale * noise.normal(shape, self.loc)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


class IndependentNormal(_Diagonal):
    """A diagonal Gaussian over the last axis.

    Args:
        loc, scale: ``[*batch, n]``.
        upscale, tanh_loc: with ``tanh_loc``, ``loc`` becomes ``upscale * tanh(loc / upscale)``.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, upscale: float = 5.0, tanh_loc: bool = False
    ) -> None:
        super().__init__((loc / upscale).tanh() * upscale if tanh_loc else loc, scale)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._base_sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return _normal_log_prob(value, self.loc, self.scale).sum(-1)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        value = self.rsample(sample_shape)
        return value, self.log_prob(value)

    def entropy(self) -> Tensor:
        return (0.5 + _HALF_LOG_2PI + self.scale.log()).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def deterministic_sample(self) -> Tensor:
        return self.loc


class TanhNormal(_Diagonal):
    """A diagonal Gaussian squashed by tanh into ``(low, high)`` (Haarnoja et al. 2018, app. C).

    Args:
        loc, scale: ``[*batch, n]``, of the Gaussian before squashing.
        upscale, tanh_loc: with ``tanh_loc``, ``loc`` becomes ``upscale * tanh(loc / upscale)``.
        low, high: bounds, numbers or tensors that broadcast to the action.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        upscale: float | Tensor = 5.0,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
        event_dims: int | None = None,
        tanh_loc: bool = False,
        safe_tanh: bool = True,
    ) -> None:
        super().__init__((loc / upscale).tanh() * upscale if tanh_loc else loc, scale)
        self.low = torch.as_tensor(low, dtype=loc.dtype, device=loc.device)
        self.high = torch.as_tensor(high, dtype=loc.dtype, device=loc.device)
        self.edge = _TANH_EDGE if safe_tanh else 0.0

    def _squash(self, x: Tensor) -> Tensor:
        y = x.tanh().clamp(self.edge - 1, 1 - self.edge)
        return self.low + 0.5 * (self.high - self.low) * (y + 1)

    def _log_det(self, x: Tensor) -> Tensor:
        # log(1 - tanh(x)^2) without cancellation for large |x|
        log_dtanh = 2 * (math.log(2) - x - F.softplus(-2 * x))
        return log_dtanh + (0.5 * (self.high - self.low)).log()

    def _log_prob_before_tanh(self, x: Tensor) -> Tensor:
        return (_normal_log_prob(x, self.loc, self.scale) - self._log_det(x)).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._squash(self._base_sample(sample_shape))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """A sample ``[*sample_shape, *batch, n]`` and its log-probability, without atanh."""
        x = self._base_sample(sample_shape)
        return self._squash(x), self._log_prob_before_tanh(x)

    def log_prob(self, value: Tensor) -> Tensor:
        y = 2 * (value - self.low) / (self.high - self.low) - 1
        edge = max(self.edge, _TANH_EDGE)
        return self._log_prob_before_tanh(y.clamp(edge - 1, 1 - edge).atanh())

    @property
    def mode(self) -> Tensor:
        """The squashed location (the usual deterministic action, not the density's maximum)."""
        return self._squash(self.loc)

    @property
    def deterministic_sample(self) -> Tensor:
        return self._squash(self.loc)


class Delta(D.Distribution):
    """A point mass; ``log_prob`` is 0 within the tolerances and -inf outside."""

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, param: Tensor, atol: float = 1e-6, rtol: float = 1e-6) -> None:
        self.param, self.atol, self.rtol = param, atol, rtol
        super().__init__(param.shape[:-1], param.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.param.expand((*tuple(sample_shape), *self.param.shape))

    sample = rsample

    def log_prob(self, value: Tensor) -> Tensor:
        near = (value - self.param).abs() <= self.atol + self.rtol * self.param.abs()
        zero = torch.zeros((), dtype=value.dtype, device=value.device)
        return torch.where(near.all(-1), zero, zero - math.inf)

    @property
    def mean(self) -> Tensor:
        return self.param

    @property
    def mode(self) -> Tensor:
        return self.param

    @property
    def deterministic_sample(self) -> Tensor:
        return self.param


class TanhDelta(Delta):
    """A point mass at ``tanh(param)`` scaled into ``[low, high]``: a bounded actor."""

    def __init__(
        self,
        param: Tensor,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
        event_dims: int = 1,
        atol: float = 1e-6,
        rtol: float = 1e-6,
    ) -> None:
        low_t = torch.as_tensor(low, dtype=param.dtype, device=param.device)
        super().__init__(low_t + 0.5 * (high - low_t) * (param.tanh() + 1), atol, rtol)


def rsample_and_log_prob(dist: D.Distribution, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
    """Reparameterised sample and log-probability, in one pass where the distribution can."""
    if hasattr(dist, "rsample_and_log_prob"):
        return dist.rsample_and_log_prob(sample_shape)
    value = dist.rsample(torch.Size(sample_shape))
    return value, dist.log_prob(value)


def deterministic_sample(dist: D.Distribution) -> Tensor:
    """The action a policy takes without exploring; raises AttributeError where it has none."""
    return dist.deterministic_sample  # type: ignore[attr-defined]


class Dropout(nn.Module):
    """Inverted dropout whose mask is drawn through :mod:`rlobj.noise` (seedable, traceable)."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = noise.uniform(x.shape, x) >= self.p
        return x * keep.to(x.dtype) / (1 - self.p)
