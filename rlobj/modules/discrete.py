"""Distributions over discrete actions that draw through :mod:`rlobj.noise`."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch import distributions as D
from torch.distributions.kl import register_kl

from rlobj import noise
from rlobj.tensor_specs import one_hot


class ReparamGradientStrategy(Enum):
    """What gradient a one-hot sample carries."""

    PassThrough = 1
    RelaxedOneHot = 2


class OneHotCategorical(D.Distribution):
    """A categorical distribution whose elements are one-hot vectors.

    Args:
        logits: ``[*batch, n]``, need not be normalised.
        probs: ``[*batch, n]``, non-negative, need not be normalised; exclusive with ``logits``.
        grad_method: the gradient of ``rsample``: that of the probabilities (``PassThrough``,
            Bengio et al. 2013), or that of the softmax of the Gumbel-perturbed logits at
            temperature 1 (``RelaxedOneHot``, straight-through Gumbel-softmax, Jang et al. 2017).

    Raises:
        ValueError: unless exactly one of ``logits`` and ``probs`` is given.
    """

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(
        self,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        grad_method: ReparamGradientStrategy = ReparamGradientStrategy.PassThrough,
    ) -> None:
        if logits is not None and probs is None:
            self.logits = logits.log_softmax(-1)
        elif probs is not None and logits is None:
            self.logits = (probs / probs.sum(-1, keepdim=True)).log()
        else:
            raise ValueError("give exactly one of logits and probs")
        self.grad_method, self.num_samples = grad_method, self.logits.shape[-1]
        super().__init__(self.logits.shape[:-1], self.logits.shape[-1:], validate_args=False)

    @property
    def probs(self) -> Tensor:
        return self.logits.exp()

    mean = probs

    @property
    def mode(self) -> Tensor:
        """The likeliest alternative (the first of several), int64."""
        return one_hot(self.logits.argmax(-1), self.num_samples)

    deterministic_sample = mode

    def log_prob(self, value: Tensor) -> Tensor:
        """``[*batch]`` for one-hot ``value`` ``[*batch, n]`` of any dtype."""
        index = value.to(self.logits.dtype).argmax(-1, keepdim=True)
        logits = self.logits.expand(*index.shape[:-1], self.num_samples)
        return logits.gather(-1, index).squeeze(-1)

    def entropy(self) -> Tensor:
        # an impossible alternative contributes 0, not 0 * -inf
        finite = self.logits.clamp(min=torch.finfo(self.logits.dtype).min)
        return -(self.probs * finite).sum(-1)

    def _perturbed(self, sample_shape: Any) -> Tensor:
        """Logits plus Gumbel noise, whose largest entry is a sample (Gumbel-max)."""
        u = noise.uniform((*tuple(sample_shape), *self.logits.shape), self.logits)
        # u = 0, which a generator may draw, becomes the smallest Gumbel there is, not -inf
        u = u.clamp(min=torch.finfo(u.dtype).tiny)
        return self.logits - (-u.log()).log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One-hot int64 ``[*sample_shape, *batch, n]``."""
        with torch.no_grad():
            return one_hot(self._perturbed(sample_shape).argmax(-1), self.num_samples)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """One-hot floats ``[*sample_shape, *batch, n]`` with the gradient of ``grad_method``."""
        perturbed = self._perturbed(sample_shape)
        hard = one_hot(perturbed.argmax(-1), self.num_samples, self.logits.dtype)
        relaxed = self.grad_method is ReparamGradientStrategy.RelaxedOneHot
        soft = perturbed.softmax(-1) if relaxed else self.probs
        return hard + (soft - soft.detach())


@register_kl(OneHotCategorical, OneHotCategorical)
def _kl_divergence(p: OneHotCategorical, q: OneHotCategorical) -> Tensor:
    terms = p.probs * (p.logits - q.logits)
    return torch.where(p.probs == 0, 0, terms).sum(-1)  # not 0 * -inf
