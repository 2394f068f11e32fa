"""Two operations in one, where stacked networks leave pairs of them in a trace.

A layer is a product of matrices, then its bias; the gradient of its weights a product, then a
transposed copy; the input of several critics a concatenation, then a copy for each. The values are
the same up to rounding (on x86 with oneDNN to the bit).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

_aten = torch.ops.aten
_LAID_OUT = {"memory_format": torch.contiguous_format}
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


def fuse(graph: Graph) -> None:
    """Rewrite ``graph`` in place; every node has its value's shape under ``meta["val"]``."""
    for node in list(graph.nodes):
        if node.target is _aten.add.Tensor and not node.kwargs:
            _add_bias(graph, node)
        elif node.target is _aten.clone.default and node.kwargs == _LAID_OUT:
            source = cast(Node, node.args[0])
            if source.target is _aten.transpose.int:
                _turn(graph, node)
            elif source.target is _aten.expand.default:
                _spread(graph, node)


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _behind(node: Any, target: Any) -> Node | None:
    """The traced call of ``target`` that ``node`` is a view of, if nothing else uses it."""
    while isinstance(node, Node) and node.target in _VIEWS and len(node.users) == 1:
        node = node.args[0]
    alone = isinstance(node, Node) and len(node.users) == 1
    return node if alone and node.target is target else None


def _replace(
    graph: Graph, node: Node, target: Any, factors: tuple[Any, ...], value: Tensor
) -> None:
    """Put ``target(*factors)``, shaped like ``value``, in the place of ``node``, in its shape."""
    with graph.inserting_before(node):
        fused = graph.call_function(target, factors)
        fused.meta["val"] = value
        shaped = graph.call_function(_aten.view.default, (fused, list(_value(node).shape)))
    shaped.meta["val"] = _value(node)
    node.replace_all_uses_with(shaped)
    graph.erase_node(node)


def _add_bias(graph: Graph, node: Node) -> None:
    for product, row in (node.args, node.args[::-1]):
        bmm = _behind(product, _aten.bmm.default)
        if bmm is None or not isinstance(row, Node):
            continue
        shape, (n, m, k) = _value(node).shape, _value(bmm).shape
        one_row = (*shape[:-2], 1, k)
        matrices = m > 1 and shape == _value(product).shape and shape[-2:] == (m, k)
        fits = _value(row).is_contiguous() or one_row == (n, 1, k)
        if matrices and _value(row).shape == one_row and fits:
            with graph.inserting_before(node):
                bias = graph.call_function(_aten.view.default, (row, [n, 1, k]))
            return _replace(graph, node, _aten.baddbmm.default, (bias, *bmm.args), _value(bmm))
    return None


def _turn(graph: Graph, node: Node) -> None:
    turned = cast(Node, node.args[0])
    bmm, rank = _behind(turned.args[0], _aten.bmm.default), _value(node).ndim
    swapped = sorted(cast(int, a) % rank for a in turned.args[1:]) == [rank - 2, rank - 1]
    if bmm is None or not swapped or len(turned.users) > 1:
        return
    if _value(node).shape[-2:] == _value(bmm).shape[:0:-1]:
        with graph.inserting_before(node):
            first, second = (
                graph.call_function(_aten.transpose.int, (a, 1, 2)) for a in bmm.args[::-1]
            )
        _replace(graph, node, _aten.bmm.default, (first, second), _value(bmm).transpose(1, 2))


def _spread(graph: Graph, node: Node) -> None:
    """A concatenation of columns ``[n, ..., width]``, copied k times to ``[n, k, ..., width]``."""
    copies = cast(Node, node.args[0])
    cat = _behind(copies.args[0], _aten.cat.default)
    if cat is None or len(copies.users) > 1:
        return
    whole, shape, once = _value(cat), _value(node).shape, _value(copies.args[0]).shape
    (n, k), last = shape[:2], whole.ndim - 1
    if cat.args[1:] not in ((last,), (-1,)) or once[:2] != (n, 1) or len(whole) != n:
        return
    if shape[-1] != whole.shape[-1] or shape[2:] != once[2:]:
        return
    with graph.inserting_before(node):
        parts = []
        for part in cast(list[Node], cat.args[0]):
            apart = graph.call_function(_aten.unsqueeze.default, (part, 1))
            size = [n, k, *_value(part).shape[1:]]
            parts.append(graph.call_function(_aten.expand.default, (apart, size)))
    _replace(graph, node, _aten.cat.default, (parts, last + 1), _value(node))
