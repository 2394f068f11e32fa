"""A Gaussian cut off at bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtri

from rlobj import noise
from rlobj.modules.distributions import Scale, _check_order, _Diagonal, _normal_log_prob


class TruncatedNormal(_Diagonal):
    """A diagonal Gaussian restricted to ``[low, high]``: density ``N(x) / P(low <= X <= high)``.

    Args:
        loc, scale: ``[*batch, n]``, of the Gaussian before it is cut.
        upscale, tanh_loc: with ``tanh_loc``, ``loc`` becomes ``upscale * tanh(loc / upscale)``.
        low, high: bounds, numbers or tensors that broadcast to the action.

    Raises:
        RuntimeError: when ``low`` and ``high`` are numbers and ``low`` is not below ``high``.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Scale,
        upscale: float | Tensor = 5.0,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
        tanh_loc: bool = False,
    ) -> None:
        _check_order(low, high, "TruncatedNormal")
        super().__init__((loc / upscale).tanh() * upscale if tanh_loc else loc, scale)
        self.low = torch.as_tensor(low, dtype=loc.dtype, device=loc.device)
        self.high = torch.as_tensor(high, dtype=loc.dtype, device=loc.device)
        a, b = ((edge - self.loc) / self.scale for edge in (self.low, self.high))
        # Both ends above the mean are mirrored below it, where the distribution function is exact.
        self._sign = torch.where(a > 0, -1.0, 1.0).to(loc.dtype)
        self._log_below = log_ndtr(torch.where(a > 0, -b, a))
        log_above = log_ndtr(torch.where(a > 0, -a, b))
        self._log_mass = log_above + torch.log1p(-(self._log_below - log_above).exp())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The inverse of the distribution function at a uniform draw."""
        u = noise.uniform((*tuple(sample_shape), *self.loc.shape), self.loc)
        share = self._log_below.exp() + u * self._log_mass.exp()
        info = torch.finfo(share.dtype)
        z = self._sign * ndtri(share.clamp(info.tiny, 1 - info.eps))
        return (self.loc + self.scale * z).clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[*batch]``; -inf outside the bounds."""
        density = _normal_log_prob(value, self.loc, self.scale) - self._log_mass
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, density, -torch.inf).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.loc.clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """``loc + scale (phi(a) - phi(b)) / P``, a and b being the standardised bounds."""
        ends = (_normal_log_prob(x, self.loc, self.scale) for x in (self.low, self.high))
        low, high = ((log_density - self._log_mass).exp() for log_density in ends)
        return self.loc + self.scale.square() * (low - high)

    deterministic_sample = mean  # as upstream
