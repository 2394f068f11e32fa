"""From a loss to a flat program of tensor operations.

A phase's terms and gradients are traced once, vmapped over the seeds, into a graph of plain
tensor operations. Running the graph costs no autograd, no vmap, no module and no tensordict
overhead, and the loss stays the only place where the maths is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from bench.engine.agent import Phase
from rlobj import LossModule, noise

_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_RESHAPES = (
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.expand.default,
)


def matching(names: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """Names equal to a prefix or below it, in the order of ``names``."""
    return [n for n in names if any(n == p or n.startswith(p + ".") for p in prefixes)]


def record_draws(loss: LossModule, phase: Phase, batch: TensorDict) -> list[noise.Draw]:
    """The random tensors one seed's phase asks for, in order."""
    recorder = noise.Recorder()
    with torch.no_grad(), noise.using(recorder):
        phase.terms(loss, batch)
    return recorder.draws


def _clip(grads: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Scale each seed's gradients to at most ``max_norm`` (leading axis: seeds)."""
    squares = torch.stack([g.reshape(g.shape[0], -1).pow(2).sum(1) for g in grads])
    scale = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    return [g * scale.reshape(-1, *([1] * (g.ndim - 1))) for g in grads]


class TracedPhase:
    """One phase over all seeds: ``(tensors, batch, noise) -> (gradients, metrics)``.

    Args:
        loss: any seed's loss; its own values are not used.
        stacked: every tensor of the loss by name, ``[n_seeds, ...]``.
        batch: an example batch ``[n_seeds, ...]``, unlocked; its keys are the program's inputs.
        draws: what :func:`record_draws` found.
    """

    def __init__(
        self,
        loss: LossModule,
        phase: Phase,
        stacked: dict[str, Tensor],
        batch: TensorDict,
        draws: Sequence[noise.Draw],
    ) -> None:
        self.loss, self.phase = loss, phase
        prefixes = [p for g in phase.groups for p in g.tensors]
        parameters = [n for n, t in loss.tensors().items() if isinstance(t, torch.nn.Parameter)]
        self.trained = matching(parameters, prefixes)
        self.fixed = [n for n in stacked if n not in set(self.trained)]
        self.batch_keys = list(batch.keys(True, True))
        self.batch_shape = batch.batch_size[1:]
        self.metrics: list[str] = []
        seeds = batch.batch_size[0]
        device = next(iter(stacked.values())).device
        example_noise = [
            torch.zeros((seeds, *d.shape), dtype=d.dtype, device=device) for d in draws
        ]
        self.graph = self._trace(stacked, self._leaves(batch), example_noise)

    def _leaves(self, batch: TensorDict) -> list[Tensor]:
        return [batch.get(k) for k in self.batch_keys]

    def _one_seed(
        self, trained: list[Tensor], fixed: list[Tensor], leaves: list[Tensor], tape: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """One seed's (sum of losses, metrics)."""
        names = [*self.trained, *self.fixed]
        bound = dict(zip(names, [*trained, *fixed], strict=True))
        batch = TensorDict(dict(zip(self.batch_keys, leaves, strict=True)), self.batch_shape)
        with self.loss.bind(bound), noise.using(noise.Tape(tape)):
            terms = self.phase.terms(self.loss, batch)
        total = torch.stack([v for k, v in terms.items() if k.startswith("loss_")]).sum()
        self.metrics = list(terms)
        return total, torch.stack([v.detach().to(torch.float32) for v in terms.values()])

    def _trace(
        self, stacked: dict[str, Tensor], leaves: list[Tensor], tape: list[Tensor]
    ) -> Callable[..., tuple[list[Tensor], Tensor]]:
        def program(
            trained: list[Tensor], fixed: list[Tensor], leaves: list[Tensor], tape: list[Tensor]
        ) -> tuple[list[Tensor], Tensor]:
            trained = [t.detach().requires_grad_(True) for t in trained]
            with torch.enable_grad():
                totals, metrics = vmap(self._one_seed)(trained, fixed, leaves, tape)
                grads = list(torch.autograd.grad(totals.sum(), trained))
            if self.phase.clip_norm is not None:
                grads = _clip(grads, self.phase.clip_norm)
            # fused Adam walks memory in order: a transposed gradient would reach the wrong weights
            return [g.contiguous() for g in grads], metrics

        trained = [stacked[n].detach() for n in self.trained]
        fixed = [stacked[n].detach() for n in self.fixed]
        graph = make_fx(program)(trained, fixed, leaves, tape)
        return simplify(graph)

    def __call__(
        self, stacked: dict[str, Tensor], batch: TensorDict, tape: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of ``self.trained`` in order, and metrics ``[n_seeds, len(self.metrics)]``."""
        return self.graph(
            [stacked[n] for n in self.trained],
            [stacked[n] for n in self.fixed],
            self._leaves(batch),
            tape,
        )


def simplify(graph: GraphModule) -> GraphModule:
    """Drop operations that change nothing (renamings, views to the same shape, ``x * 1``) and
    whatever is not used. Values stay bit-equal."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and _is_identity(node):
            node.replace_all_uses_with(cast(Node, node.args[0]))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _is_identity(node: Node) -> bool:
    if node.target in _ALIASES:
        return True
    if node.target is torch.ops.aten.mul.Scalar:
        return bool(node.args[1] == 1)
    source = node.args[0] if node.args else None
    if node.target in _RESHAPES and isinstance(source, Node):
        return source.meta["val"].shape == node.meta["val"].shape
    return False


def trace_policy(
    policy: Callable[[LossModule, TensorDict], Tensor],
    loss: LossModule,
    stacked: dict[str, Tensor],
    inputs: TensorDict,
) -> Callable[[dict[str, Tensor], TensorDict], Tensor]:
    """``policy`` over all seeds as a flat program of (tensors, inputs ``[n_seeds, n, ...]``)."""
    names, keys = list(stacked), list(inputs.keys(True, True))
    shape = inputs.batch_size[1:]
    training = loss.training
    loss.eval()  # no dropout

    def one_seed(tensors: list[Tensor], leaves: list[Tensor]) -> Tensor:
        observed = TensorDict(dict(zip(keys, leaves, strict=True)), shape)
        with loss.bind(dict(zip(names, tensors, strict=True))):
            return policy(loss, observed)

    def program(tensors: list[Tensor], leaves: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return vmap(one_seed)(tensors, leaves)

    example = [stacked[n].detach() for n in names]
    try:
        graph = simplify(make_fx(program)(example, [inputs.get(k) for k in keys]))
    finally:
        loss.train(training)
    return lambda tensors, td: graph([tensors[n] for n in names], [td.get(k) for k in keys])
