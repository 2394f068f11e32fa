"""How a value estimator asks its network: functionally, in chunks, or once for s and s' together.

Also the standardisation of rewards and advantages. Everything is a function of tensors with static
shapes: sizes and loops never depend on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call

from rlobj.utils import weight_like


def call(network: nn.Module, inputs: TensorDictBase, params: TensorDictBase | None) -> TensorDict:
    """Outputs of ``network`` with other parameters, or with its own ones held constant: a network
    is regressed onto its targets, it does not move them (Sutton & Barto, 9.3)."""
    if params is not None:
        named = dict(params.flatten_keys(".").items())
    else:
        named = {name: p.detach() for name, p in network.named_parameters()}
    return functional_call(network, named, (inputs.copy(),))


@dataclass
class Chunks:
    """Into how many pieces a batch is cut for the value network, along which batch axis."""

    size: int | None
    number: int | None
    dim: int

    def __post_init__(self) -> None:
        if self.size is not None and self.number is not None:
            raise ValueError("give value_chunk_size or num_chunks, not both")
        if any(n is not None and n < 1 for n in (self.size, self.number)):
            raise ValueError("value_chunk_size and num_chunks must be positive")

    def split(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, ...]:
        if self.size is None and self.number is None:
            return (tensordict,)
        length = tensordict.batch_size[self.dim]
        size = self.size or -(-length // (self.number or 1))
        return tuple(tensordict.split(size, self.dim))

    def join(self, values: list[Tensor], ndim: int) -> Tensor:
        return values[0] if len(values) == 1 else torch.cat(values, self.dim % ndim)


@dataclass
class Fused:
    """Where the states of a rollout lie in one sequence that holds s and s' of every step.

    In a rollout, s' of a step is s of the next one, except where an episode was truncated: there
    s' gets a slot of its own, and what follows moves to the right. The sequence has T + ``budget``
    slots; the last s' takes one, so ``budget - 1`` truncations inside the rollout fit. The steps
    that more truncations push out are not ``valid``. After a terminated step no s' is needed.
    """

    position: Tensor  # [*batch, T]: slot of s_t; s'_t is in the next one
    valid: Tensor  # [*batch, T] bool
    step: Tensor  # [*batch, T + budget]: which step a slot shows
    is_next: Tensor  # [*batch, T + budget] bool: whether it shows s' of that step

    @classmethod
    def of(cls, done: Tensor, terminated: Tensor, budget: int) -> Fused:
        """From the flags ``[*batch, T]``."""
        length = done.shape[-1]
        inserted = (done & ~terminated).long()
        at = torch.arange(length, device=done.device)
        position = at + inserted.cumsum(-1) - inserted
        slots = torch.arange(length + budget, device=done.device)
        reached = position.unsqueeze(-2) <= slots.unsqueeze(-1)  # [*batch, slot, t]
        step = reached.sum(-1) - 1
        is_next = position.gather(-1, step) < slots
        return cls(position, position + 1 < length + budget, step, is_next)

    def states(self, now: TensorDictBase, after: TensorDictBase) -> TensorDict:
        """The sequence, from the states s and s' with batch ``[*batch, T]``."""

        def fuse(s: Tensor, s2: Tensor) -> Tensor:
            def expanded(x: Tensor) -> Tensor:
                x = x.reshape(*x.shape, *[1] * (s.ndim - x.ndim))
                return x.expand(*x.shape[: self.step.ndim], *s.shape[self.step.ndim :])

            step, time = expanded(self.step), self.step.ndim - 1
            return torch.where(expanded(self.is_next), s2.gather(time, step), s.gather(time, step))

        return cast(TensorDict, now.apply(fuse, after, batch_size=self.step.shape))

    def values(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """V(s) and V(s') per step from the values of all slots; 0 where not ``valid``."""
        time = self.step.ndim - 1

        def pick(slots: Tensor) -> Tensor:
            slots = slots.clamp(max=sequence.shape[time] - 1)
            slots = weight_like(slots, sequence.narrow(time, 0, slots.shape[-1]))
            return sequence.gather(time, slots)

        valid = weight_like(self.valid, pick(self.position))
        now, after = pick(self.position), pick(self.position + 1)
        return now.where(valid, 0.0), after.where(valid, 0.0)


def group_index(group: Tensor) -> Tensor:
    """Group ids of any integers as 0, 1, ... below their number, flattened."""
    flat, order = group.flatten().sort()
    new = torch.cat([torch.zeros_like(flat[:1]), (flat[1:] != flat[:-1]).to(flat.dtype)])
    return torch.zeros_like(flat).scatter(0, order, new.cumsum(0))


def standardize(
    x: Tensor,
    eps: float,
    valid: Tensor | None = None,
    group: Tensor | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    """``(x - mean) / max(sd, eps)`` with the unbiased standard deviation.

    Statistics are over all elements, along ``axes``, or over those with the same integer in
    ``group``; elements that are not ``valid`` do not count and become 0, as does a single one.
    """
    weight = torch.ones_like(x) if valid is None else weight_like(valid, x).to(x.dtype)
    x = x if valid is None else x.where(weight.bool(), 0)
    index = None if group is None else group_index(weight_like(group, x))

    def total(values: Tensor) -> Tensor:
        """Sum over each element's group, at that element."""
        if index is None:
            return values.sum() if axes is None else values.sum(tuple(axes), keepdim=True)
        sums = torch.zeros_like(values.flatten()).scatter_add(0, index, values.flatten())
        return sums[index].reshape(values.shape)

    count = total(weight)
    centred = (x - total(weight * x) / count.clamp_min(1)) * weight
    variance = total(centred.square()) / (count - 1).clamp_min(1)
    return centred / variance.clamp_min(eps**2).sqrt()


def entry(tensordict: TensorDictBase, key: NestedKey, mend: str) -> Tensor:
    """An entry that must be there.

    Raises:
        ValueError: naming the entry and what to do.
    """
    found = tensordict.get(key, None)
    if found is None:
        raise ValueError(f"the batch holds no {key!r}: {mend}")
    return found
