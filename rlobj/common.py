"""LossModule: everything of a loss that is not the algorithm.

A loss declares its keys (``_AcceptedKeys``), its default value estimator and its output keys,
registers its networks with :meth:`LossModule.convert_to_functional`, and then holds only maths.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams, unravel_key
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from tensordict.utils import Buffer
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rlobj.utils import ValueEstimators, default_value_kwargs, value_type_of, weight_like

_REDUCTIONS = ("none", "mean", "sum")
_MASK_KEYS: tuple[NestedKey, ...] = (("collector", "mask"), "shifted_valid")


def _next(key: NestedKey) -> NestedKey:
    return unravel_key(("next", key))


def _in_loss_mode(method: Callable) -> Callable:
    """Run a loss method with the loss's own sampling mode (deterministic unless it says else)."""

    @functools.wraps(method)
    def wrapper(self: LossModule, *args: Any, **kwargs: Any) -> Any:
        with set_interaction_type(self.deterministic_sampling_mode):
            return method(self, *args, **kwargs)

    return wrapper


class LossModule(TensorDictModuleBase):
    """Base class of all losses.

    Subclasses declare ``_AcceptedKeys`` (the names of the entries they read and write),
    ``default_value_estimator`` and ``out_keys``, call :meth:`convert_to_functional` for each
    network, and define ``forward``. ``forward`` and every method whose name ends in ``loss`` run
    in ``deterministic_sampling_mode``.
    """

    @dataclass
    class _AcceptedKeys:
        pass

    default_keys: ClassVar[type] = _AcceptedKeys
    default_value_estimator: ClassVar[ValueEstimators | None] = None
    deterministic_sampling_mode: ClassVar[InteractionType] = InteractionType.DETERMINISTIC
    TARGET_NET_WARNING = (
        "The loss has delayed target networks and no updater moves them: build a SoftUpdate or "
        "HardUpdate with it and call its step() after each optimizer step."
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.default_keys = cls._AcceptedKeys
        for name, method in list(vars(cls).items()):
            is_loss = name == "forward" or (name.endswith("loss") and not name.startswith("_"))
            if is_loss and callable(method):
                setattr(cls, name, _in_loss_mode(method))

    def __init__(self, *, reduction: str | None = None, deactivate_vmap: bool = False) -> None:
        super().__init__()
        self.reduction = "mean" if reduction is None else reduction
        if self.reduction not in _REDUCTIONS:
            raise NotImplementedError(f"reduction {reduction!r}: choose one of {_REDUCTIONS}")
        self.deactivate_vmap = deactivate_vmap
        self.vmap_randomness = "different"
        self.loss_mask_key: NestedKey | None = "auto"
        self.use_prioritized_weights: bool | str = False
        self.value_type: ValueEstimators | None = self.default_value_estimator
        self._tensor_keys = self._AcceptedKeys()
        self._value_estimator: Any = None
        self._networks: dict[str, dict] = {}
        self._bound: Mapping[str, Tensor] | None = None
        self._updated = False

    # ------------------------------------------------------------------ keys

    @property
    def tensor_keys(self) -> Any:
        """The entry names in use, an instance of ``_AcceptedKeys``."""
        return self._tensor_keys

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Rename entries; None resets a name to its default.

        Raises:
            ValueError: on a name that the loss does not have.
        """
        known = {f.name: getattr(self._AcceptedKeys(), f.name) for f in fields(self._AcceptedKeys)}
        for name, key in kwargs.items():
            if name not in known:
                raise ValueError(f"{name!r} is not a key of {type(self).__name__}: {list(known)}")
            setattr(self._tensor_keys, name, known[name] if key is None else key)
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())

    def _estimator_keys(self) -> dict[str, NestedKey]:
        names = ("reward", "done", "terminated")
        return {n: getattr(self.tensor_keys, n) for n in names if hasattr(self.tensor_keys, n)}

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries the loss reads: derived from its networks' inputs and its accepted keys."""
        keys = [unravel_key(k) for n in self._networks for k in self.__dict__[n].in_keys]
        if hasattr(self.tensor_keys, "reward"):
            observed = [k for k in keys if k != unravel_key(self.tensor_keys.action)]
            named = (self.tensor_keys.reward, self.tensor_keys.done, self.tensor_keys.terminated)
            keys += [_next(k) for k in (*observed, *named)]
        keys += [self.tensor_keys.action] if hasattr(self.tensor_keys, "action") else []
        return list(dict.fromkeys(unravel_key(k) for k in keys))

    @in_keys.setter
    def in_keys(self, values: Sequence[NestedKey]) -> None:
        raise AttributeError("in_keys follow from the networks and set_keys: rename those instead")

    # -------------------------------------------------------------- networks

    def convert_to_functional(
        self,
        module: nn.Module | Sequence[nn.Module],
        module_name: str,
        expand_dim: int | None = None,
        create_target_params: bool = False,
        compare_against: Sequence[Tensor] | None = None,
    ) -> None:
        """Register a network: its module, ``<name>_params`` and ``target_<name>_params``.

        Args:
            module: the network, or a sequence of them to be stacked as an ensemble.
            expand_dim: make an ensemble of this many copies of one module; each parameter is drawn
                anew, uniform between its minimum and maximum, so that the copies differ.
            create_target_params: keep a delayed copy as buffers.
            compare_against: parameters trained elsewhere; shared ones enter here as constants.
        """
        several = isinstance(module, (Sequence, nn.ModuleList))
        ensemble = expand_dim is not None or several
        members = list(module) if isinstance(module, (Sequence, nn.ModuleList)) else [module]
        if several:
            if expand_dim is not None and expand_dim != len(members):
                raise ValueError(f"{module_name}: {len(members)} networks given for {expand_dim}")
            params = _stack([TensorDict.from_module(m) for m in members])
        else:
            params = TensorDict.from_module(members[0])
            shared = {id(p) for p in compare_against or ()}
            params = params.apply(lambda p: _own_copy(p, shared, expand_dim), filter_empty=False)
        params = TensorDictParams(params, no_convert=True)
        self.__dict__[module_name] = _stateless(members[0])
        setattr(self, f"{module_name}_params", params)
        if create_target_params:
            frozen = params.data.apply(lambda p: Buffer(p.clone()), filter_empty=False)
            setattr(self, f"target_{module_name}_params", TensorDictParams(frozen, no_convert=True))
        self._networks[module_name] = {"ensemble": ensemble, "delayed": create_target_params}

    def delayed_networks(self) -> list[str]:
        """Names of the networks that keep a delayed copy."""
        return [n for n, facts in self._networks.items() if facts["delayed"]]

    def __getattr__(self, item: str) -> Any:
        try:
            return super().__getattr__(item)
        except AttributeError:
            if item.startswith("target_") and item.endswith("_params"):
                return getattr(self, item.removeprefix("target_")).data
            raise

    def mark_updated(self) -> None:
        """Called by a target updater: silences the warning about targets that never move."""
        self._updated = True

    def _warn_if_targets_stand_still(self) -> None:
        if not self._updated and self._bound is None and self.delayed_networks():
            warnings.warn(self.TARGET_NET_WARNING, UserWarning, stacklevel=4)

    def _params_of(self, name: str, target: bool, detach: bool) -> dict[str, Tensor]:
        delayed = target and self._networks[name]["delayed"]
        attribute = f"target_{name}_params" if delayed else f"{name}_params"
        own, bound = getattr(self, attribute).flatten_keys(".").items(), self._bound or {}
        params = {k: bound.get(f"{attribute}.{k}", v) for k, v in own}
        return {k: v.detach() for k, v in params.items()} if target or detach else params

    def run_network(
        self, name: str, tensordict: TensorDictBase, *, target: bool = False, detach: bool = False
    ) -> TensorDict:
        """Outputs of a registered network on its ``in_keys`` of ``tensordict``.

        An ensemble's outputs gain a leading axis. ``target`` uses the delayed parameters,
        ``detach`` cuts the gradient to the parameters (not to the inputs).
        """
        net = self.__dict__[name]
        params = self._params_of(name, target, detach)
        inputs = tensordict.select(*net.in_keys)

        def call(p: dict[str, Tensor]) -> dict[NestedKey, Tensor]:
            out = functional_call(net, p, (inputs.copy(),))
            return {k: out.get(k) for k in net.out_keys}

        if not self._networks[name]["ensemble"]:
            return TensorDict(call(params), inputs.batch_size)
        size = next(iter(params.values())).shape[0]
        if self.deactivate_vmap:
            members = [call({k: v[i] for k, v in params.items()}) for i in range(size)]
            stacked = {k: torch.stack([m[k] for m in members]) for k in members[0]}
        else:
            stacked = vmap(call, randomness=self.vmap_randomness)(params)
        return TensorDict(stacked, (size, *inputs.batch_size))

    def distribution(
        self, tensordict: TensorDictBase, *, target: bool = False, detach: bool = False
    ) -> torch.distributions.Distribution:
        """The actor's action distribution on ``tensordict`` (parameters as in run_network)."""
        net = self.__dict__["actor_network"]
        params = self._params_of("actor_network", target, detach)
        inputs = tensordict.select(*net.in_keys)
        return functional_call(_DistOf(net), {f"net.{k}": v for k, v in params.items()}, (inputs,))

    def get_stateful_net(self, network_name: str, copy: bool | None = None) -> nn.Module:
        """A network of this loss with its parameters in place (a copy unless ``copy=False``)."""
        net = self.__dict__[network_name]
        net = deepcopy(net) if copy or copy is None else net
        getattr(self, f"{network_name}_params").to_module(net)
        return net

    def from_stateful_net(self, network_name: str, stateful_net: nn.Module) -> None:
        """Load the parameters of ``stateful_net`` into the network of that name."""
        source = TensorDict.from_module(stateful_net)
        getattr(self, f"{network_name}_params").data.update_(source.data)

    @contextmanager
    def bind(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Compute with other parameters: ``tensors`` by state-dict name replace the loss's own.

        This makes a loss a pure function of (parameters, batch, noise); the training engine
        binds one seed's slice of the stacked parameters here.
        """
        saved = dict(self._parameters), dict(self._buffers), self._bound
        self._bound = {**(self._bound or {}), **tensors}
        own_dicts: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        for own in own_dicts:
            own.update({k: tensors[k] for k in own if k in tensors})
        try:
            yield
        finally:
            self._parameters.update(saved[0])
            self._buffers.update(saved[1])
            self._bound = saved[2]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the loss computes with, by state-dict name, for :meth:`bind`."""
        own = {**self._parameters, **self._buffers}
        found: dict[str, Tensor] = {k: v for k, v in own.items() if v is not None}
        for name, facts in self._networks.items():
            prefixes = ("", "target_") if facts["delayed"] else ("",)
            for prefix in prefixes:
                attribute = f"{prefix}{name}_params"
                params = getattr(self, attribute).flatten_keys(".")
                found.update({f"{attribute}.{k}": v for k, v in params.items()})
        return found

    # ------------------------------------------------------- value estimation

    def make_value_estimator(
        self, value_type: ValueEstimators | str | None = None, **hyperparams: Any
    ) -> LossModule:
        """Choose how returns are bootstrapped, e.g. ``make_value_estimator("td0", gamma=0.9)``.

        Raises:
            KeyError: on an unknown alias.
            NotImplementedError: on an estimator the loss cannot use.
        """
        from rlobj.value import ESTIMATORS

        if value_type is None:
            value_type = self.default_value_estimator
        if value_type is None:
            raise NotImplementedError(f"{type(self).__name__} bootstraps no value")
        self.value_type = value_type_of(value_type)
        kwargs = {**default_value_kwargs(self.value_type), **hyperparams}
        self._value_estimator = ESTIMATORS[self.value_type](value_network=None, **kwargs)
        self._value_estimator.set_keys(**self._estimator_keys())
        return self

    @property
    def value_estimator(self) -> Any:
        """The value estimator, built with default settings where none was made."""
        if self._value_estimator is None:
            self.make_value_estimator()
        return self._value_estimator

    def bootstrap(self, tensordict: TensorDictBase, next_value: Tensor) -> Tensor:
        """Return targets from V(s'): ``next_value`` is ``[*batch]``, so is the result."""
        target = self.value_estimator.value_estimate(
            tensordict, next_value=next_value.unsqueeze(-1)
        )
        return target.squeeze(-1).detach()

    # --------------------------------------------------------------- reduction

    def _mask(self, tensordict: TensorDictBase) -> Tensor | None:
        keys = _MASK_KEYS if self.loss_mask_key == "auto" else (self.loss_mask_key,)
        masks = [tensordict.get(k, None) for k in keys if k is not None]
        masks = [m for m in masks if m is not None]
        return functools.reduce(torch.logical_and, masks) if masks else None

    def _weight(self, tensordict: TensorDictBase) -> Tensor | None:
        if self.use_prioritized_weights is False:
            return None
        return tensordict.get(self.tensor_keys.priority_weight, None)

    def reduce(self, value: Tensor, tensordict: TensorDictBase | None = None) -> Tensor:
        """Apply mask, priority weights and the reduction to a per-sample term.

        Masks are applied as weights, not by indexing, so that shapes never depend on values.
        """
        weight = self._weight(tensordict) if tensordict is not None else None
        mask = self._mask(tensordict) if tensordict is not None else None
        if mask is not None:
            mask = mask.to(value.dtype)
            weight = mask if weight is None else weight * mask
        if weight is not None:
            weight = weight_like(weight, value)
            value = value * weight
        if self.reduction == "none":
            return value
        if self.reduction == "sum":
            return value.sum()
        return value.mean() if weight is None else value.sum() / weight.sum()

    def set_vmap_randomness(self, value: str) -> None:
        """How random draws behave across an ensemble: "different" (default), "same", "error"."""
        self.vmap_randomness = value

    def train(self, mode: bool = True) -> LossModule:
        """Training or evaluation mode, of the networks too."""
        for name in self._networks:
            self.__dict__[name].train(mode)
        return super().train(mode)

    def reset(self) -> None:
        """Losses without running state have nothing to reset."""


class _DistOf(nn.Module):
    """Lets functional_call reach ``get_dist`` of an actor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensordict: TensorDictBase) -> torch.distributions.Distribution:
        return cast(Any, self.net).get_dist(tensordict)


def _own_copy(param: Tensor, shared: set[int], expand_dim: int | None) -> Tensor:
    """A parameter as the loss holds it: expanded and drawn anew for an ensemble, a constant where
    another network already trains it."""
    if id(param) in shared:
        held = param.data
        return Buffer(held.expand(expand_dim, *held.shape) if expand_dim else held)
    if expand_dim is None:
        return param
    copies = param.data.expand(expand_dim, *param.shape).clone()
    if not isinstance(param, nn.Parameter):
        return Buffer(copies)
    return nn.Parameter(copies.uniform_(param.data.min().item(), param.data.max().item()))


def _stack(members: list[TensorDict]) -> TensorDict:
    def stack(first: Tensor, *rest: Tensor) -> Tensor:
        stacked = torch.stack([first.data, *(r.data for r in rest)])
        return nn.Parameter(stacked) if isinstance(first, nn.Parameter) else Buffer(stacked)

    return cast(TensorDict, members[0].apply(stack, *members[1:], filter_empty=False))


def _stateless(module: nn.Module) -> nn.Module:
    """A copy of the module whose tensors hold no memory."""
    params = TensorDict.from_module(module)

    def meta(p: Tensor) -> Tensor:
        empty = p.data.to("meta")
        return nn.Parameter(empty) if isinstance(p, nn.Parameter) else Buffer(empty)

    with params.apply(meta, filter_empty=False).to_module(module):
        return deepcopy(module)
