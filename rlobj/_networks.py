"""How a loss holds the networks it is given: stateless modules beside their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import Buffer
from torch import Tensor, nn
from torch.func import functional_call, vmap


class Networks(TensorDictModuleBase):
    """A module that computes with networks whose parameters it holds apart from them.

    :meth:`convert_to_functional` registers a network; :meth:`run_network` and
    :meth:`distribution` call it; :meth:`bind` replaces parameters for a while.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deactivate_vmap = False
        self.vmap_randomness = "different"
        self._networks: dict[str, dict] = {}
        self._bound: Mapping[str, Tensor] | None = None

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
            params = stack([TensorDict.from_module(m) for m in members])
        else:
            params = TensorDict.from_module(members[0])
            shared = {id(p) for p in compare_against or ()}
            params = params.apply(lambda p: own_copy(p, shared, expand_dim), filter_empty=False)
        params = TensorDictParams(params, no_convert=True)
        self.__dict__[module_name] = stateless(members[0])
        setattr(self, f"{module_name}_params", params)
        if create_target_params:
            frozen = params.data.apply(lambda p: Buffer(p.clone()), filter_empty=False)
            setattr(self, f"target_{module_name}_params", TensorDictParams(frozen, no_convert=True))
        self._networks[module_name] = {"ensemble": ensemble, "delayed": create_target_params}

    def reset_parameters_recursive(self) -> None:
        """Initialise all networks anew, each member of an ensemble by itself, and set the delayed
        copies to them."""
        for name, facts in self._networks.items():
            params = getattr(self, f"{name}_params")
            reset_parameters(self.__dict__[name], params, facts["ensemble"])
            if facts["delayed"]:
                getattr(self, f"target_{name}_params").data.update_(params.data)

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

    def _params_of(self, name: str, target: bool, detach: bool) -> dict[str, Tensor]:
        delayed = target and self._networks[name]["delayed"]
        attribute = f"target_{name}_params" if delayed else f"{name}_params"
        own, bound = getattr(self, attribute).flatten_keys(".").items(), self._bound or {}
        params = {k: bound.get(f"{attribute}.{k}", v) for k, v in own}
        return {k: v.detach() for k, v in params.items()} if target or detach else params

    def run_network(
        self,
        name: str,
        tensordict: TensorDictBase,
        *,
        target: bool = False,
        detach: bool = False,
        members: Tensor | None = None,
        own_inputs: bool = False,
    ) -> TensorDict:
        """Outputs of a registered network on its ``in_keys`` of ``tensordict``.

        An ensemble's outputs gain a leading axis. ``target`` uses the delayed parameters,
        ``detach`` cuts the gradient to the parameters (not to the inputs). ``members`` are the
        indices of those to run instead of all; with ``own_inputs`` the first axis of
        ``tensordict`` holds one batch for each.
        """
        net = self.__dict__[name]
        params = self._params_of(name, target, detach)
        inputs = tensordict.select(*net.in_keys)

        def call(p: dict[str, Tensor], x: TensorDictBase = inputs) -> dict[NestedKey, Tensor]:
            out = functional_call(net, p, (x.copy(),))
            return {k: out.get(k) for k in net.out_keys}

        if not self._networks[name]["ensemble"]:
            return TensorDict(call(params), inputs.batch_size)
        if members is not None:
            params = {k: v[members] for k, v in params.items()}
        batch = inputs.batch_size[1:] if own_inputs else inputs.batch_size
        size = next(iter(params.values())).shape[0]
        if self.deactivate_vmap:
            each = [inputs[i] if own_inputs else inputs for i in range(size)]
            outs = [call({k: v[i] for k, v in params.items()}, x) for i, x in enumerate(each)]
            stacked = {k: torch.stack([m[k] for m in outs]) for k in outs[0]}
        elif own_inputs:
            parts = {k: inputs.get(k) for k in net.in_keys}
            own = vmap(lambda p, x: call(p, TensorDict(x, batch)), randomness=self.vmap_randomness)
            stacked = own(params, parts)
        else:
            stacked = vmap(call, randomness=self.vmap_randomness)(params)
        return TensorDict(stacked, (size, *batch))

    def distribution(
        self, tensordict: TensorDictBase, *, target: bool = False, detach: bool = False
    ) -> torch.distributions.Distribution:
        """The actor's action distribution on ``tensordict`` (parameters as in run_network)."""
        net = self.__dict__["actor_network"]
        params = self._params_of("actor_network", target, detach)
        inputs = tensordict.select(*net.in_keys)
        return functional_call(DistOf(net), {f"net.{k}": v for k, v in params.items()}, (inputs,))

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

    def set_vmap_randomness(self, value: str) -> None:
        """How random draws behave across an ensemble: "different" (default), "same", "error"."""
        self.vmap_randomness = value

    def train(self, mode: bool = True) -> Networks:
        """Training or evaluation mode, of the networks too."""
        for name in self._networks:
            self.__dict__[name].train(mode)
        return super().train(mode)


class DistOf(nn.Module):
    """Lets functional_call reach ``get_dist`` of an actor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensordict: TensorDictBase) -> torch.distributions.Distribution:
        return cast(Any, self.net).get_dist(tensordict)


def own_copy(param: Tensor, shared: set[int], expand_dim: int | None) -> Tensor:
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


def stack(members: list[TensorDict]) -> TensorDict:
    """The parameters of an ensemble's members along a new leading axis."""

    def together(first: Tensor, *rest: Tensor) -> Tensor:
        stacked = torch.stack([first.data, *(r.data for r in rest)])
        return nn.Parameter(stacked) if isinstance(first, nn.Parameter) else Buffer(stacked)

    return cast(TensorDict, members[0].apply(together, *members[1:], filter_empty=False))


def stateless(module: nn.Module) -> nn.Module:
    """A copy of the module whose tensors hold no memory."""
    params = TensorDict.from_module(module)

    def meta(p: Tensor) -> Tensor:
        empty = p.data.to("meta")
        return nn.Parameter(empty) if isinstance(p, nn.Parameter) else Buffer(empty)

    with params.apply(meta, filter_empty=False).to_module(module):
        return deepcopy(module)


def reset_parameters(net: nn.Module, params: TensorDictParams, ensemble: bool) -> None:
    """Draw the parameters of a network, or of each member of an ensemble, as its layers do when
    they are built; layers without ``reset_parameters`` keep theirs."""
    held = params.data
    for i in range(next(iter(held.values(True, True))).shape[0] if ensemble else 1):
        member = held.apply(lambda p, i=i: p[i]) if ensemble else held
        fresh = deepcopy(net)
        member.clone().to_module(fresh)
        for layer in fresh.modules():
            if callable(getattr(layer, "reset_parameters", None)):
                cast(Any, layer).reset_parameters()
        member.update_(TensorDict.from_module(fresh).data)
