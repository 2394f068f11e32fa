"""From a loss to a flat list of tensor operations.

A phase's terms and gradients are traced once, vmapped over the seeds, into a graph of plain
tensor operations. Running the graph costs no autograd, no vmap, no module and no tensordict
overhead, and the loss stays the only place where the maths is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor
from torch._ops import OpOverload
from torch.func import functionalize, vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from bench.engine.agent import Phase
from bench.engine.merge import Merged, is_pure, is_view
from rlobj import LossModule, noise


def matching(names: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """Names equal to a prefix or below it, in the order of ``names``."""
    return [n for n in names if any(n == p or n.startswith(p + ".") for p in prefixes)]


def record_draws(loss: LossModule, phase: Phase, batch: TensorDict) -> list[noise.Draw]:
    """The random tensors one seed's phase asks for, in order."""
    recorder = noise.Recorder()
    with torch.no_grad(), noise.using(recorder), loss.bind({}):
        phase.terms(loss, batch)
    return recorder.draws


def flat_graph(program: Callable[..., list[Tensor]], example: Sequence[Tensor]) -> GraphModule:
    """``program(*example)`` as tensor operations that write into nothing; nothing is computed."""
    trace = make_fx(program, tracing_mode="fake", _allow_non_fake_inputs=True)
    graph = trace(*example)
    writes = [n for n in graph.graph.nodes if n.op == "call_function" and not is_pure(n.target)]
    if all(map(_as_value, writes)):
        return graph
    return make_fx(functionalize(graph, remove="mutations"))(*example)


def _as_value(write: Node) -> bool:
    """Turn a write into what nothing else reads, as autograd's formulas have them, into the
    operation that returns the result; false where that cannot be done."""
    target, read = cast(OpOverload, write.target), write.args[0]
    if not isinstance(read, Node) or list(read.users) != [write]:
        return False
    packet = getattr(torch.ops.aten, target.overloadpacket.__name__.removesuffix("_"), None)
    pure = getattr(packet, target._overloadname, None)
    fresh = isinstance(read.target, OpOverload) and not is_view(read.target)
    if not fresh or pure is None or not is_pure(pure):
        return False
    value = pure(*map_arg(write.args, _value), **map_arg(write.kwargs, _value))
    if value.dtype != _value(write).dtype:  # a write never promotes
        return False
    write.target = pure
    return True


def _value(node: Node) -> Tensor:
    return node.meta["val"]


def _clip(grads: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Scale each seed's gradients to at most ``max_norm`` (leading axis: seeds)."""
    flat = torch.cat([g.reshape(len(g), -1) for g in grads], 1)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    parts = (flat * (max_norm / (norm + 1e-6)).clamp(max=1.0)).split(
        [g[0].numel() for g in grads], 1
    )
    return [p.reshape(g.shape) for p, g in zip(parts, grads, strict=True)]


class TracedPhase:
    """One phase over all seeds as operations: (trained, fixed, batch, noise) in, gradients of
    ``trained`` in order and metrics ``[n_seeds, len(metrics)]`` out.

    Args:
        loss: any seed's loss; its own values are not used.
        stacked: every tensor of the loss by name, ``[n_seeds, ...]``.
        batch: an example batch ``[n_seeds, ...]`` by key.
        keys: its keys in the order in which the program takes them.
        draws: what :func:`record_draws` found.
    """

    def __init__(
        self,
        loss: LossModule,
        phase: Phase,
        stacked: Mapping[str, Tensor],
        batch: TensorDict,
        keys: Sequence[NestedKey],
        draws: Sequence[noise.Draw],
    ) -> None:
        self.loss, self.phase = loss, phase
        prefixes = [p for g in phase.groups for p in g.tensors]
        parameters = [n for n, t in loss.tensors().items() if isinstance(t, torch.nn.Parameter)]
        self.trained = matching(parameters, prefixes)
        self.fixed = [n for n in stacked if n not in set(self.trained)]
        self.batch_keys = list(keys)
        self.batch_shape = batch.batch_size[1:]
        self.metrics: list[str] = []
        seeds, device = batch.batch_size[0], next(iter(stacked.values())).device
        tape = [torch.zeros((seeds, *d.shape), dtype=d.dtype, device=device) for d in draws]
        tensors = [stacked[n].detach() for n in (*self.trained, *self.fixed)]
        self.draws = len(tape)
        leaves = [batch.get(k) for k in self.batch_keys]
        self.graph = flat_graph(self._program, [*tensors, *leaves, *tape])

    def _one_seed(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """One seed's (sum of losses, metrics)."""
        names = [*self.trained, *self.fixed]
        bound = dict(zip(names, given, strict=False))
        leaves, tape = given[len(names) :], given[len(given) - self.draws :]
        batch = TensorDict(dict(zip(self.batch_keys, leaves, strict=False)), self.batch_shape)
        with self.loss.bind(bound), noise.using(noise.Tape(tape)):
            terms = self.phase.terms(self.loss, batch)
        total = torch.stack([v for k, v in terms.items() if k.startswith("loss_")]).sum()
        self.metrics = list(terms)
        return total, torch.stack([v.detach().to(torch.float32) for v in terms.values()])

    def _program(self, *given: Tensor) -> list[Tensor]:
        count = len(self.trained)
        trained = [t.detach().requires_grad_(True) for t in given[:count]]
        with torch.enable_grad():
            totals, metrics = vmap(self._one_seed)(*trained, *given[count:])
            grads = list(torch.autograd.grad(totals.sum(), trained))
        if self.phase.clip_norm is not None:
            grads = self._clipped(grads, self.phase.clip_norm)
        # fused Adam walks memory in order: a transposed gradient would reach the wrong weights
        return [*(g.contiguous() for g in grads), metrics]

    def _clipped(self, grads: Sequence[Tensor], max_norm: float) -> list[Tensor]:
        """Each group's on its own."""
        named = dict(zip(self.trained, grads, strict=True))
        for group in self.phase.groups:
            names = matching(self.trained, group.tensors)
            named.update(zip(names, _clip([named[n] for n in names], max_norm), strict=True))
        return list(named.values())


class PolicyProgram:
    """A traced policy: inputs ``[n_seeds, n, ...]`` to actions.

    ``reads`` names the tensors that actions depend on.
    """

    def __init__(
        self,
        run: Callable[..., list[Tensor]],
        keys: Sequence[NestedKey],
        reads: Sequence[str],
    ) -> None:
        self._run, self._keys, self.reads = run, keys, reads

    def __call__(self, inputs: TensorDict) -> Tensor:
        return self._run(*(inputs.get(k) for k in self._keys))[0]


def trace_policy(
    policy: Callable[[LossModule, TensorDict], Tensor],
    loss: LossModule,
    stacked: Mapping[str, Tensor],
    inputs: TensorDict,
) -> PolicyProgram:
    """``policy`` over all seeds as a flat program; it reads the tensors of ``stacked`` where they
    are, so it follows them."""
    names, keys = list(stacked), list(inputs.keys(True, True))
    shape = inputs.batch_size[1:]
    training = loss.training
    loss.eval()  # no dropout

    def one_seed(*given: Tensor) -> Tensor:
        leaves = given[len(names) :]
        observed = TensorDict(dict(zip(keys, leaves, strict=True)), shape)
        with loss.bind(dict(zip(names, given, strict=False))):
            return policy(loss, observed)

    def program(*given: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [vmap(one_seed)(*given)]

    tensors = [stacked[n].detach() for n in names]
    try:
        graph = flat_graph(program, [*tensors, *(inputs.get(k) for k in keys)])
    finally:
        loss.train(training)
    graph.graph.eliminate_dead_code()
    places = graph.graph.find_nodes(op="placeholder")
    reads = [name for name, place in zip(names, places, strict=False) if place.users]
    merged = Merged()
    lasting = [merged.lasting(t) for t in tensors]
    (action,) = merged.include(graph, [*lasting, *(merged.given() for _ in keys)])
    return PolicyProgram(merged.compile([action]), keys, reads)
