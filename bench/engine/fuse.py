"""Products of matrices with what surrounds them in one operation.

The batched layers of stacked networks come out of a trace as a product, then the bias; their
gradients as a product, then a transposed copy. Each pair is one call, with the same values up to
rounding (on x86 with oneDNN the same bits).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

_aten = torch.ops.aten
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


def fuse(graph: Graph) -> None:
    """Rewrite ``graph`` in place; every node has its value's shape under ``meta["val"]``."""
    for node in list(graph.nodes):
        if node.target is _aten.add.Tensor and not node.kwargs:
            _add_bias(graph, node)
        elif node.target is _aten.clone.default:
            _turn(graph, node)


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _product(node: Any) -> Node | None:
    """The batched product that ``node`` is a view of, if nothing else uses it."""
    while isinstance(node, Node) and node.target in _VIEWS and len(node.users) == 1:
        node = node.args[0]
    alone = isinstance(node, Node) and len(node.users) == 1
    return node if alone and node.target is _aten.bmm.default else None


def _replace(graph: Graph, node: Node, target: Any, factors: tuple[Any, ...]) -> None:
    """Put ``target(*factors)`` in the place of ``node``, in its shape."""
    with graph.inserting_before(node):
        fused = graph.call_function(target, factors)
        shaped = graph.call_function(_aten.view.default, (fused, list(_value(node).shape)))
    shaped.meta["val"] = _value(node)
    node.replace_all_uses_with(shaped)
    graph.erase_node(node)


def _add_bias(graph: Graph, node: Node) -> None:
    for product, row in (node.args, node.args[::-1]):
        bmm = _product(product)
        if bmm is None or not isinstance(row, Node):
            continue
        shape, (n, m, k) = _value(node).shape, _value(bmm).shape
        one_row = (*shape[:-2], 1, k)
        matrices = m > 1 and shape[-2:] == (m, k) == _value(product).shape[-2:]
        if matrices and _value(row).shape == one_row:
            with graph.inserting_before(node):
                bias = graph.call_function(_aten.view.default, (row, [n, 1, k]))
            return _replace(graph, node, _aten.baddbmm.default, (bias, *bmm.args))
    return None


def _turn(graph: Graph, node: Node) -> None:
    turned = node.args[0]
    if not isinstance(turned, Node) or turned.target is not _aten.transpose.int:
        return
    bmm, rank = _product(turned.args[0]), _value(node).ndim
    swapped = sorted(cast(int, a) % rank for a in turned.args[1:]) == [rank - 2, rank - 1]
    if bmm is None or not swapped or len(turned.users) > 1:
        return
    if _value(node).shape[-2:] == _value(bmm).shape[:0:-1]:
        with graph.inserting_before(node):
            first, second = (
                graph.call_function(_aten.transpose.int, (a, 1, 2)) for a in bmm.args[::-1]
            )
        _replace(graph, node, _aten.bmm.default, (first, second))
