"""LossModule: everything of a loss that is not the algorithm.

A loss declares its keys (``_AcceptedKeys``), its default value estimator and its output keys,
registers its networks with :meth:`LossModule.convert_to_functional`, and then holds only maths.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor

from rlobj._networks import Networks
from rlobj.utils import ValueEstimators, default_value_kwargs, value_type_of, weight_like

_REDUCTIONS = ("none", "mean", "sum")
_SCALAR_MODES = (None, "exclude", "non_tensor")
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


class LossModule(Networks):
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
    scalar_keys: ClassVar[tuple[str, ...]] = ()  # of out_keys: what reduction="none" leaves scalar
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

    def __init__(
        self,
        *,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.reduction = "mean" if reduction is None else reduction
        if self.reduction not in _REDUCTIONS:
            raise NotImplementedError(f"reduction {reduction!r}: choose one of {_REDUCTIONS}")
        if scalar_output_mode not in _SCALAR_MODES:
            modes = f"choose one of {_SCALAR_MODES}"
            raise ValueError(f"scalar_output_mode {scalar_output_mode!r}: {modes}")
        self.scalar_output_mode = scalar_output_mode if self.reduction == "none" else None
        if self.scalar_output_mode == "exclude":
            self.out_keys = [k for k in self.out_keys if k not in self.scalar_keys]
        self.deactivate_vmap = deactivate_vmap
        self.loss_mask_key: NestedKey | None = "auto"
        self.use_prioritized_weights: bool | str = False
        self.value_type: Any = self.default_value_estimator
        self._tensor_keys = self._AcceptedKeys()
        self._value_estimator: Any = None
        self._updated = False

    # ---------------------------------------------------------- coefficients

    def register_coeff_buffer(
        self,
        name: str,
        value: float | Tensor | None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Hold a coefficient as a scalar buffer (None: none yet), so that it is saved and a
        schedule can set it: ``loss.<name> = 0.5`` writes in place."""
        if value is not None:
            dtype = dtype or torch.get_default_dtype()
            value = torch.as_tensor(value, device=device, dtype=dtype).detach().clone()
        self.register_buffer(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        for own in ("_buffers", "_parameters") if number else ():
            if name in self.__dict__.get(own, ()):
                held = self.__dict__[own][name]
                self._write(name, held, float(value))
                return
        super().__setattr__(name, value)

    def _write(self, name: str, held: Tensor | None, value: float) -> None:
        if held is None:
            self.register_coeff_buffer(name, value)
        else:
            held.data.fill_(value)

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
            acted = getattr(self.tensor_keys, "action", None)
            observed = [k for k in keys if acted is None or k != unravel_key(acted)]
            named = (self.tensor_keys.reward, self.tensor_keys.done, self.tensor_keys.terminated)
            keys += [_next(k) for k in (*observed, *named)]
        keys += [self.tensor_keys.action] if hasattr(self.tensor_keys, "action") else []
        return list(dict.fromkeys(unravel_key(k) for k in [*keys, *self._also_read()]))

    @in_keys.setter
    def in_keys(self, values: Sequence[NestedKey]) -> None:
        raise AttributeError("in_keys follow from the networks and set_keys: rename those instead")

    def _also_read(self) -> list[NestedKey]:
        """Entries that a loss reads besides."""
        return []

    # --------------------------------------------------------------- networks

    @property
    def functional(self) -> bool:
        """Whether the loss holds its networks' parameters apart from the modules: always."""
        return True

    def mark_updated(self) -> None:
        """Called by a target updater: silences the warning about targets that never move."""
        self._updated = True

    def _warn_if_targets_stand_still(self) -> None:
        if not self._updated and self._bound is None and self.delayed_networks():
            warnings.warn(self.TARGET_NET_WARNING, UserWarning, stacklevel=4)

    def _q(self, tensordict: TensorDictBase, action: Tensor, **which: Any) -> Tensor:
        """Q-values of ``action``, ``[n_critics, *batch]``; ``which`` as in run_network."""
        inputs = tensordict.copy().set(self.tensor_keys.action, action)
        out = self.run_network("qvalue_network", inputs, **which)
        return out.get(self.tensor_keys.state_action_value).squeeze(-1)

    # ------------------------------------------------------- value estimation

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> LossModule:
        """Choose how returns are bootstrapped, e.g. ``make_value_estimator("td0", gamma=0.9)``.

        Args:
            value_type: a member of ValueEstimators, its name, a subclass of ValueEstimatorBase, or
                an instance (without ``hyperparams``).

        Raises:
            KeyError: on an unknown alias.
            NotImplementedError: on an estimator the loss cannot use.
        """
        from rlobj.value import ESTIMATORS, ValueEstimatorBase

        value_type = self.default_value_estimator if value_type is None else value_type
        if value_type is None:
            raise NotImplementedError(f"{type(self).__name__} bootstraps no value")
        if isinstance(value_type, ValueEstimatorBase):
            if hyperparams:
                raise TypeError(f"a built estimator takes no {list(hyperparams)}: give its class")
            self.value_type, self._value_estimator = type(value_type), value_type
        elif isinstance(value_type, type):
            cls = cast(type[ValueEstimatorBase], value_type)
            self.value_type, self._value_estimator = cls, cls.for_loss(self, **hyperparams)
        else:
            self.value_type = value_type_of(value_type)
            kwargs = {**default_value_kwargs(self.value_type), **hyperparams}
            self._value_estimator = ESTIMATORS[self.value_type].for_loss(self, **kwargs)
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
        weight = tensordict.get(self.tensor_keys.priority_weight, None)
        if weight is None and self.use_prioritized_weights is True:
            key = self.tensor_keys.priority_weight
            raise KeyError(
                f"use_prioritized_weights=True needs the entry {key!r}: add it, or 'auto'"
            )
        return weight

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

    def output(
        self, losses: Mapping[str, Tensor], info: Mapping[str, Tensor], tensordict: TensorDictBase
    ) -> TensorDict:
        """What ``forward`` returns: the reduced losses and ``info``, whose ``scalar_keys`` are
        left out or become non-tensors where ``scalar_output_mode`` says so."""
        out = TensorDict({k: self.reduce(v, tensordict) for k, v in losses.items()})
        for key, value in info.items():
            if self.scalar_output_mode is None or key not in self.scalar_keys:
                out.set(key, value)
            elif self.scalar_output_mode == "non_tensor":
                out.set_non_tensor(key, value)
        return out

    def reset(self) -> None:
        """Losses without running state have nothing to reset."""
