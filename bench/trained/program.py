"""A policy as a short list of tensor operations: what every exported format is made from."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram, export
from torch.fx import GraphModule, Node

from bench.errors import RunError
from bench.trained.modules import Standalone

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)
# Where numbers lie in memory, which does not change them.
_PLACEMENT = ("device", "layout", "pin_memory", "memory_format")


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's notices about its own inner workings."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)  # on packages that are not installed and not needed
        try:
            yield
        finally:
            log.setLevel(level)


def flatten(policy: Standalone) -> GraphModule:
    """The policy as a graph of ATen operations for any number of rows. Its tensors keep their
    names; what the action does not need is left out."""
    with quiet():
        graph = exported(policy, policy).run_decompositions({}).module(check_guards=False)
        for node in list(graph.graph.nodes):
            _simplify(node)
        graph.graph.eliminate_dead_code()
        return GraphModule(graph, graph.graph)


def exported(policy: torch.nn.Module, like: Standalone) -> ExportedProgram:
    """torch.export's program of a policy that takes what ``like`` does."""
    example, sizes = given(like)
    with quiet():
        return export(policy, example, dynamic_shapes=sizes)


def given(policy: Standalone) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Example arguments of a policy, and which of their sizes may vary."""
    example = tuple(slot.zeros(2) for slot in (*policy.inputs, *policy.state))
    rows = Dim("rows")
    return example, tuple({0: rows} for _ in example)


def _simplify(node: Node) -> None:
    """Leave out what is about memory and not about numbers; the number of rows follows from the
    rest where a tensor is given another shape."""
    if node.target is _ATEN._assert_tensor_metadata.default:
        node.graph.erase_node(node)
    elif node.target is _ATEN.clone.default:
        node.replace_all_uses_with(node.all_input_nodes[0])
    elif node.target is operator.getitem:
        _skip_broadcast(node)
    elif node.target in (*_VIEWS, _ATEN.expand.default):
        tensor, shape = cast(tuple[Any, Any], node.args)
        node.args = (tensor, [-1 if isinstance(part, Node) else part for part in shape])
        node.target = _ATEN.reshape.default if node.target in _VIEWS else node.target


def _skip_broadcast(node: Node) -> None:
    """A tensor that keeps its shape among others that get one: they are not needed for it."""
    parts, place = cast(tuple[Node, int], node.args)
    if parts.target is _ATEN.broadcast_tensors.default:
        same = cast(list[Node], parts.args[0])[place]
        if same.meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(same)


def tensors_of(graph: GraphModule) -> dict[str, Tensor]:
    """The tensors that a graph computes with, by name."""
    named = dict(graph.named_parameters()) | dict(graph.named_buffers())
    used = [str(node.target) for node in graph.graph.find_nodes(op="get_attr")]
    return {name: named[name].detach().contiguous().clone() for name in used}


def describe(graph: GraphModule) -> dict[str, Any]:
    """The graph as JSON: ``inputs``, ``operations`` and ``outputs``.

    An operation is a list of its own name, that of ATen's operation with its overload ("getitem":
    one of several results), its arguments and its named arguments. In arguments, strings name
    inputs, tensors or operations before; ``{"dtype": "bool"}`` is a dtype.
    """
    nodes = list(graph.graph.nodes)
    operations = [_operation(node) for node in nodes if node.op == "call_function"]
    (output,) = (node for node in nodes if node.op == "output")
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    return {
        "inputs": inputs,
        "operations": operations,
        "outputs": [_spelled(value) for value in output.args[0]],
    }


def _operation(node: Node) -> list[Any]:
    got = node.target is operator.getitem
    name = "getitem" if got else str(node.target).removeprefix("aten.")
    named = {k: _spelled(v) for k, v in node.kwargs.items() if k not in _PLACEMENT}
    return [node.name, name, [_spelled(value) for value in node.args], named]


def _spelled(value: Any) -> Any:
    if isinstance(value, Node):
        return str(value.target) if value.op == "get_attr" else value.name
    if isinstance(value, list | tuple):
        return [_spelled(part) for part in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float):
        return value
    raise RunError(f"this policy cannot be described as safetensors: {value!r}; use another format")
