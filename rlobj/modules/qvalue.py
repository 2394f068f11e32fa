"""Greedy policies over the values of discrete actions.

Action values are ``[*batch, n]``. What an action is depends on the action space:

* ``"one_hot"``: a vector ``[*batch, n]`` with one one;
* ``"categorical"``: its index, ``[*batch]``;
* ``"mult_one_hot"``: several one-hot vectors side by side, as wide as ``var_nums`` says. The value
  of an action is the sum of the entries it picks;
* ``"binary"``: n switches. The value of an action is the sum of the entries it switches on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential, dispatch
from torch import Tensor, nn

from rlobj.specs import Composite, TensorSpec, action_space_of, one_hot

VarNums = int | Sequence[int] | None


def greedy_action(values: Tensor, action_space: str, var_nums: VarNums = None) -> Tensor:
    """The action of largest value, int64; of several the first. See the module for shapes."""
    if action_space == "categorical":
        return values.argmax(-1)
    if action_space == "one_hot":
        return one_hot(values.argmax(-1), values.shape[-1])
    if action_space == "binary":
        return (values > 0).to(torch.long)
    parts = values.split(var_nums if isinstance(var_nums, int) else list(var_nums or ()), -1)
    return torch.cat([one_hot(p.argmax(-1), p.shape[-1]) for p in parts], -1)


def value_of(values: Tensor, action: Tensor, action_space: str) -> Tensor:
    """The value ``[*lead, *batch]`` of ``action`` under ``values`` ``[*lead, *batch, n]``.

    A categorical action is ``[*batch]``, or ``[*batch, 1]`` where ``values`` has no lead axes.
    """
    if action_space != "categorical":
        return (values * action.to(values.dtype)).sum(-1)
    index = action if action.ndim == values.ndim else action.unsqueeze(-1)
    index = index.expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


class QValueModule(TensorDictModuleBase):
    """Writes the greedy action and its value next to the action values.

    Args:
        action_space: "one_hot", "categorical", "mult_one_hot" or "binary"; or give ``spec``.
        action_value_key: where the action values are read.
        action_mask_key: boolean ``[*batch, n]``, the actions allowed; None: all are.
        out_keys: action, action values (minus infinity, almost, where masked), and the value of
            the action ``[*batch, 1]``.
        var_nums: widths of the choices of "mult_one_hot"; by default the spec's.
        spec: of the action, or a composite with an "action" entry.
        safe: project the action onto its spec.

    Raises:
        ValueError: when the action space cannot be told, disagrees with the spec, or is
            "mult_one_hot" with unknown widths.
        RuntimeError: when ``out_keys`` lacks ``action_value_key``.
    """

    def __init__(
        self,
        action_space: str | None = None,
        action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        var_nums: VarNums = None,
        spec: TensorSpec | None = None,
        safe: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(action_space, TensorSpec):
            raise TypeError("action_space takes a name: give the spec as spec=")
        self.action_space = resolve_action_space(action_space, spec)
        self.action_value_key = "action_value" if action_value_key is None else action_value_key
        self.action_mask_key = action_mask_key
        if out_keys is None:
            out_keys = ["action", self.action_value_key, "chosen_action_value"]
        if self.action_value_key not in out_keys:
            raise RuntimeError(f"out_keys {out_keys} lack the key {self.action_value_key!r}")
        masks = [] if action_mask_key is None else [action_mask_key]
        self.in_keys: list[Any] = [self.action_value_key, *masks]
        self.out_keys: list[Any] = list(out_keys)
        self.spec = _composite(spec, self.out_keys)
        self.safe = safe
        own = _action_spec(spec)
        self.var_nums = getattr(own, "nvec", None) if var_nums is None else var_nums
        if self.action_space == "mult_one_hot" and self.var_nums is None:
            raise ValueError("action_space 'mult_one_hot' needs var_nums, or a MultiOneHot spec")

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = self._masked(_entry(tensordict, self.action_value_key, "Action value"), tensordict)
        action = self._pick(values)
        chosen = value_of(values, action, self.action_space).unsqueeze(-1)
        return self._write(tensordict, (action, values, chosen))

    def _masked(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        if self.action_mask_key is None:
            return values
        mask = _entry(tensordict, self.action_mask_key, "Action mask")
        return values.masked_fill(~mask, torch.finfo(values.dtype).min)

    def _pick(self, values: Tensor) -> Tensor:
        action = greedy_action(values, self.action_space, self.var_nums)
        spec = self.spec[self.out_keys[0]]
        return spec.project(action) if self.safe and spec is not None else action

    def _write(self, tensordict: TensorDictBase, values: Sequence[Tensor]) -> TensorDictBase:
        for key, value in zip(self.out_keys, values, strict=True):
            tensordict.set(key, value)
        return tensordict


class DistributionalQValueModule(QValueModule):
    """Writes the action whose return distribution has the largest mean (Bellemare et al. 2017).

    Args:
        support: the returns ``[atoms]`` that the probabilities belong to.
        action_value_key: log-probabilities ``[*batch, atoms, n]``, normalised over the atoms.
        out_keys: action and log-probabilities (as they came: a mask only restricts the action).

    The other arguments and errors are those of :class:`QValueModule`, and

    Raises:
        NotImplementedError: on "binary" actions.
        RuntimeError: when log-probabilities and support disagree about the number of atoms.
    """

    support: Tensor

    def __init__(
        self,
        action_space: str | None,
        support: Tensor,
        action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        var_nums: VarNums = None,
        spec: TensorSpec | None = None,
        safe: bool = False,
    ) -> None:
        if out_keys is None:
            out_keys = ["action", "action_value" if action_value_key is None else action_value_key]
        super().__init__(
            action_space, action_value_key, action_mask_key, out_keys, var_nums, spec, safe
        )
        if self.action_space == "binary":
            raise NotImplementedError("binary actions have no distributional values")
        self.register_buffer("support", _floating(support))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        log_probs = _entry(tensordict, self.action_value_key, "Action value")
        if log_probs.shape[-2] != self.support.shape[-1]:
            raise RuntimeError(
                f"{log_probs.shape[-2]} atoms in {tuple(log_probs.shape)}, but the support has "
                f"{self.support.shape[-1]}"
            )
        means = (log_probs.exp() * self.support.unsqueeze(-1)).sum(-2)
        return self._write(tensordict, (self._pick(self._masked(means, tensordict)), log_probs))


class QValueHook:
    """A forward hook that turns a network's action values into (action, values, chosen value).

    Args and errors: see :class:`QValueModule`.
    """

    def __init__(
        self,
        action_space: str,
        var_nums: VarNums = None,
        action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        self.qvalue_model = QValueModule(
            action_space, action_value_key, action_mask_key, out_keys, var_nums
        )

    def __call__(self, net: nn.Module, inputs: Any, values: Tensor) -> tuple[Tensor, ...]:
        return self.qvalue_model(values)


class DistributionalDQNnet(TensorDictModuleBase):
    """Log-softmax over the atoms, the axis before the last.

    Raises:
        RuntimeError: on fewer than two axes.
    """

    def __init__(
        self,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.in_keys: list[Any] = list(in_keys or ["action_value"])
        self.out_keys: list[Any] = list(out_keys or ["action_value"])

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        for source, dest in zip(self.in_keys, self.out_keys, strict=True):
            logits = tensordict.get(source)
            if logits.ndim < 2:
                raise RuntimeError(
                    f"{source} needs the axes [*batch, atoms, actions], got {tuple(logits.shape)}"
                )
            tensordict.set(dest, logits.log_softmax(-2))
        return tensordict


class QValueActor(TensorDictSequential):
    """A network of action values and the greedy policy over them.

    Args:
        module: writes ``action_value_key`` when a TensorDictModule; else called on ``in_keys``.
        in_keys: inputs of a module that is none, ["observation"] by default.
        action_key, chosen_action_value_key: where the action and its value go.

    The other arguments and errors are those of :class:`QValueModule`, and

    Raises:
        KeyError: when a TensorDictModule does not write ``action_value_key``.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        spec: TensorSpec | None = None,
        safe: bool = False,
        action_space: str | TensorSpec | None = None,
        action_value_key: NestedKey | None = None,
        action_key: NestedKey | None = None,
        chosen_action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
    ) -> None:
        value_key = "action_value" if action_value_key is None else action_value_key
        name, spec = space_and_spec(action_space, spec)
        out_keys = [action_key or "action", value_key]
        out_keys.append(chosen_action_value_key or "chosen_action_value")
        head = QValueModule(name, value_key, action_mask_key, out_keys, spec=spec, safe=safe)
        super().__init__(_as_tensordict_module(module, in_keys, value_key), head)
        self._describe(head)

    def _describe(self, head: QValueModule) -> None:
        self.spec, self.action_space, self.var_nums = head.spec, head.action_space, head.var_nums
        self.action_value_key = head.action_value_key


class DistributionalQValueActor(QValueActor):
    """A network of return distributions and the greedy policy over their means.

    Args:
        module: writes logits ``[*batch, atoms, n]``.
        support: the returns ``[atoms]``.
        make_log_softmax: normalise the logits over the atoms; False when the module does.

    The other arguments and errors are those of :class:`QValueActor`.
    """

    support: Tensor

    def __init__(
        self,
        module: nn.Module,
        support: Tensor,
        in_keys: Sequence[NestedKey] | None = None,
        spec: TensorSpec | None = None,
        safe: bool = False,
        var_nums: VarNums = None,
        action_space: str | TensorSpec | None = None,
        action_value_key: NestedKey = "action_value",
        action_mask_key: NestedKey | None = None,
        make_log_softmax: bool = True,
    ) -> None:
        key = action_value_key
        name, spec = space_and_spec(action_space, spec)
        head = DistributionalQValueModule(
            name, support, key, action_mask_key, var_nums=var_nums, spec=spec, safe=safe
        )
        normalise = [DistributionalDQNnet(in_keys=[key], out_keys=[key])]
        steps = [*(normalise if make_log_softmax else []), head]
        TensorDictSequential.__init__(self, _as_tensordict_module(module, in_keys, key), *steps)
        self.register_buffer("support", head.support)
        self._describe(head)


def _floating(support: Tensor) -> Tensor:
    """Integers as floats: target networks are averaged, buffers too."""
    return support if support.is_floating_point() else support.to(torch.get_default_dtype())


def space_and_spec(
    action_space: str | TensorSpec | None, spec: TensorSpec | None
) -> tuple[str | None, TensorSpec | None]:
    """A spec given as ``action_space`` becomes the ``spec``.

    Raises:
        ValueError: when both are specs and not the same one.
    """
    if not isinstance(action_space, TensorSpec):
        return action_space, spec
    if spec is not None and spec is not action_space:
        raise ValueError("action_space and spec are two different specs: give one")
    return None, action_space


def resolve_action_space(action_space: object, spec: object) -> str:
    """The name of the action space, from itself or from the spec; the two must agree.

    Raises:
        ValueError: when both are missing, or they disagree.
    """
    named = None if action_space is None else action_space_of(action_space)
    known = None if spec is None else action_space_of(spec)
    if named is not None and known is not None and named != known:
        raise ValueError(f"action_space {named!r} does not match the spec's, {known!r}")
    if named is None and known is None:
        raise ValueError("the action space is unknown: give action_space or spec")
    return str(named or known)


def _composite(spec: TensorSpec | None, out_keys: Sequence[NestedKey]) -> Composite:
    """Specs of everything a module writes; None where nothing is known."""
    if not isinstance(spec, Composite):
        shape = () if spec is None else spec.shape[:-1]
        spec = Composite({out_keys[0]: spec}, shape=shape)
    spec = spec.clone()
    for key in out_keys:
        if key not in spec:
            spec[key] = None
    return spec


def _action_spec(spec: Any) -> Any:
    return spec["action"] if isinstance(spec, Composite) and "action" in spec else spec


def _entry(tensordict: TensorDictBase, key: NestedKey, what: str) -> Tensor:
    found = tensordict.get(key, None)
    if found is None:
        raise KeyError(f"{what} key {key!r} not found among {list(tensordict.keys(True, True))}")
    return found


def _as_tensordict_module(
    module: nn.Module, in_keys: Sequence[NestedKey] | None, out_key: NestedKey
) -> nn.Module:
    if not isinstance(module, TensorDictModuleBase):
        return TensorDictModule(module, list(in_keys or ["observation"]), [out_key])
    if out_key not in module.out_keys:
        raise KeyError(f"{out_key!r} is not among the module's out_keys {list(module.out_keys)}")
    return module
