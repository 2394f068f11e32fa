"""A phase's optimizer, sums of metrics, and what it adds to the program of an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from bench.engine.agent import Group, Phase
from bench.engine.merge import Merged
from bench.engine.trace import TracedPhase, matching

_aten = torch.ops.aten
_BETAS, _EPS = (0.9, 0.999), 1e-8


class PhaseState:
    """Adam's moments of what a phase trains, and what its metrics add up to.

    Args:
        traced: the phase over all seeds.
        tensors: every tensor of the loss by name, ``[n_seeds, ...]``.
    """

    def __init__(self, traced: TracedPhase, tensors: Mapping[str, Tensor]) -> None:
        self.traced = traced
        trained = {n: tensors[n] for n in traced.trained}
        device = next(iter(trained.values())).device
        self.moments = {
            key: {n: torch.zeros_like(t) for n, t in trained.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }
        self.steps = torch.zeros((), device=device)
        seeds = len(next(iter(trained.values())))
        shape = (seeds, len(traced.metrics))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.finite = torch.zeros(shape, dtype=torch.int32, device=device)  # runs until a sum broke
        self.runs = 0  # since the sums were read

    @property
    def phase(self) -> Phase:
        return self.traced.phase

    def rates(self, step: int, total_steps: int) -> list[float]:
        """Learning rates of the scheduled groups at update ``step`` (from 1)."""
        groups = [(g.lr, g.schedule) for g in self.phase.groups]
        return [lr * f(step - 1, total_steps) for lr, f in groups if f is not None]

    def broken(self) -> list[tuple[int, int, int]]:
        """(seed, term, run) of every sum that is not finite: the run, from 1, that broke it."""
        finite = self.finite.tolist()
        return [
            (seed, term, run + 1)
            for seed, row in enumerate(finite)
            for term, run in enumerate(row)
            if run < self.runs
        ]

    def forget(self) -> None:
        """Start new sums."""
        self.sums.zero_()
        self.finite.zero_()
        self.runs = 0

    def append(
        self,
        merged: Merged,
        leaves: Sequence[Node],
        tape: Sequence[Node],
        tensors: Mapping[str, Tensor],
        *,
        tau: float,
        tensor_rates: bool = False,
    ) -> None:
        """Loss terms and gradients, Adam, sums of metrics and target updates; ``tensor_rates``:
        scheduled learning rates come as tensors."""
        traced = self.traced
        names = (*traced.trained, *traced.fixed)
        lasting = [merged.lasting(tensors[n]) for n in names]
        *grads, metrics = merged.include(traced.graph, [*lasting, *leaves, *tape])
        merged.write(_aten.add_.Tensor, (merged.lasting(self.steps), 1))
        for group in self.phase.groups:
            named = dict(zip(traced.trained, grads, strict=True))
            self._append_adam(merged, group, named, tensors, tensor_rates)
        self._append_sums(merged, metrics)
        self._append_settings(merged, metrics, tensors)
        self._append_targets(merged, tensors, tau)

    def _append_sums(self, merged: Merged, metrics: Node) -> None:
        """A sum that a term breaks stays broken, so the runs before are counted, not compared."""
        sums = merged.lasting(self.sums)
        merged.write(_aten.add_.Tensor, (sums, metrics))
        nothing = merged.call(_aten.sub.Tensor, (sums, sums))
        whole = merged.call(_aten.eq.Scalar, (nothing, 0))
        merged.write(_aten.add_.Tensor, (merged.lasting(self.finite), whole))

    def _append_adam(
        self,
        merged: Merged,
        group: Group,
        grads: Mapping[str, Node],
        tensors: Mapping[str, Tensor],
        tensor_rates: bool,
    ) -> None:
        names = matching(self.traced.trained, group.tensors)
        held = [
            [merged.lasting(found[n]) for n in names]
            for found in (tensors, self.moments["exp_avg"], self.moments["exp_avg_sq"])
        ]
        steps = [merged.lasting(self.steps)] * len(names)
        settings = {
            "lr": group.lr if group.schedule is None else merged.given(),
            "beta1": _BETAS[0],
            "beta2": _BETAS[1],
            "weight_decay": group.weight_decay,
            "eps": _EPS,
            "amsgrad": False,
            "maximize": False,
        }
        params, *moments = held
        lists = (params, [grads[n] for n in names], *moments, [], steps)
        adam = _aten._fused_adamw_ if group.decoupled else _aten._fused_adam_
        as_tensor = tensor_rates and group.schedule is not None
        merged.write(adam.tensor_lr if as_tensor else adam.default, lists, settings)

    def _append_settings(
        self, merged: Merged, metrics: Node, tensors: Mapping[str, Tensor]
    ) -> None:
        for i, name in enumerate(self.traced.metrics):
            if name.startswith("set_"):
                value = merged.call(_aten.select.int, (metrics, 1, i))
                merged.write(_aten.copy_.default, (merged.lasting(tensors[name[4:]]), value))

    def _append_targets(self, merged: Merged, tensors: Mapping[str, Tensor], tau: float) -> None:
        moved = [(target_of(net), f"{net}_params") for net in self.phase.targets]
        pairs = [_pairs(tensors, *names) for names in (*moved, *self.phase.follows)]
        if names := [pair for found in pairs for pair in found]:
            targets, online = zip(*names, strict=True)
            lists = [[merged.lasting(tensors[n]) for n in side] for side in (targets, online)]
            merged.write(_aten._foreach_lerp_.Scalar, (*lists, tau))
        for to, source in (pair for c in self.phase.copies for pair in _pairs(tensors, *c)):
            held = merged.lasting(tensors[to]), merged.lasting(tensors[source])
            merged.write(_aten.copy_.default, held)


def _pairs(tensors: Mapping[str, Tensor], to: str, source: str) -> list[tuple[str, str]]:
    """The names below ``to``, each with that of the same tensor below ``source``."""
    return [(n, source + n.removeprefix(to)) for n in matching(list(tensors), [to])]


def target_of(network: str) -> str:
    """What the parameters of a network's delayed copy are below: ``"target_actor_params"`` of
    ``"actor"``, ``"part.target_actor_params"`` of ``"part.actor"``."""
    *part, name = network.split(".")
    return ".".join([*part, f"target_{name}_params"])
