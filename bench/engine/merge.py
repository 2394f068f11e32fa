"""Several traced graphs over the same tensors as one program without repeated work.

An operation is left out only where an earlier one computed the same from the same inputs; what
:mod:`bench.engine.fuse` puts in the place of two gives the same up to rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from bench.engine.fuse import fuse

_aten = torch.ops.aten
_LARGEST_CONSTANT = 1 << 20  # elements of a folded constant
# what these return depends on the shape of their first argument alone
_FROM_SHAPE = (
    *(_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default),
    *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default),
)
_SAME_IF_SHAPED_ALIKE = (_aten.view.default, _aten._unsafe_view.default, _aten.expand.default)
_SAME = (_aten.detach.default, _aten.alias.default)


def is_view(target: Any) -> bool:
    """Whether an operation returns its argument's memory under another shape."""
    if target is _aten._unsafe_view.default:
        return True
    schema = getattr(target, "_schema", None)
    aliases = [r.alias_info for r in schema.returns] if schema is not None else []
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def is_pure(target: Any) -> bool:
    """Whether an operation writes into nothing and draws nothing."""
    schema = getattr(target, "_schema", None)
    if schema is None:  # operator.getitem and the like
        return True
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    return not writes and torch.Tag.nondeterministic_seeded not in target.tags


class Merged:
    """A program under construction.

    Its inputs are *lasting* tensors (parameters, targets, optimizer state: the same memory at every
    call, so whatever is only a view of them is taken once, here) and *given* ones (batch, noise).

    Args:
        compiled: pass each traced graph through torch.compile and leave it whole.
    """

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self.graph = Graph()
        self._tensor: dict[Node, Tensor] = {}  # behind every lasting node
        self._node: dict[int, Node] = {}  # of a lasting tensor, by its id
        self._root: dict[Node, Node] = {}  # what a view of a lasting node is a view of
        self._version: dict[Node, int] = {}  # writes into a root so far
        self._constant: set[Node] = set()
        self._parts: dict[Node, list[tuple[Tensor, Node]]] = {}  # of a lasting tensor, split
        self._given: list[Node] = []
        self._known: dict[Any, Node] = {}  # operation and arguments -> result

    # ------------------------------------------------------------------ inputs

    def lasting(self, tensor: Tensor, root: Node | None = None) -> Node:
        """The node of a tensor that keeps its memory; the same for the same object."""
        if id(tensor) not in self._node:
            node = self.graph.placeholder(f"lasting_{len(self._tensor)}")
            node.meta["val"] = tensor
            self._node[id(tensor)], self._tensor[node] = node, tensor
            self._root[node] = root or node
            self._version.setdefault(self._root[node], 0)
        return self._node[id(tensor)]

    def given(self) -> Node:
        """A new argument of the program."""
        self._given.append(self.graph.placeholder(f"given_{len(self._given)}"))
        return self._given[-1]

    # -------------------------------------------------------------- operations

    def include(self, module: GraphModule, inputs: Sequence[Node]) -> list[Node]:
        """Append a traced graph; its results."""
        if self.compiled:
            return self._include_compiled(module, inputs)
        env: dict[Node, Node] = {}
        arguments = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(arguments)
                env[node].meta.setdefault("val", node.meta["val"])
            elif node.op == "get_attr":
                env[node] = self._fold(getattr(module, node.target))
            elif node.op == "output":
                return [env[n] for n in cast(list[Node], node.args[0])]
            else:
                env[node] = self._call(node, env)
        raise AssertionError("a graph without output")

    def _include_compiled(self, module: GraphModule, inputs: Sequence[Node]) -> list[Node]:
        compiled = torch.compile(module, fullgraph=True, dynamic=False)

        def run(*given: Tensor) -> list[Tensor]:
            return compiled(*given)

        found, results = self.call(run, tuple(inputs)), module.graph.output_node().args[0]
        return [self.call(operator.getitem, (found, i)) for i in range(len(cast(list, results)))]

    def call(self, target: Any, args: tuple) -> Node:
        """Append an operation that no traced graph holds."""
        return self.graph.call_function(target, args)

    def write(self, target: Any, args: tuple, kwargs: dict | None = None) -> None:
        """Append an operation that changes lasting tensors: those that its schema says."""
        self.graph.call_function(target, args, kwargs or {})
        for argument, declared in zip(args, target._schema.arguments, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write:
                for root in {self._root[n] for n in _nodes(argument) if n in self._root}:
                    self._version[root] += 1

    def _call(self, node: Node, env: dict[Node, Node]) -> Node:
        args, kwargs = map_arg(node.args, env.get), map_arg(node.kwargs, env.get)
        if not is_pure(node.target):
            raise RuntimeError(f"a traced loss may not call {node.target}: it writes or draws")
        if _changes_nothing(node.target, args, node.meta.get("val")):
            return cast(Node, args[0])
        numbers = (lambda x: x) if is_view(node.target) else self._versions
        key = (node.target, _key(args, numbers), _key(sorted(kwargs.items()), numbers))
        if key not in self._known:
            self._known[key] = self._append(node, args, kwargs)
        return self._known[key]

    def _append(self, node: Node, args: Any, kwargs: Any) -> Node:
        sources, value = _nodes(args) + _nodes(kwargs), node.meta.get("val")
        if node.target in _FROM_SHAPE and _small(value):
            like = args[0].meta["val"]
            strided = (like.shape, like.stride())
            blank = torch.empty_strided(*strided, dtype=like.dtype, device=like.device)
            return self._fold(node.target(blank, *args[1:], **kwargs))
        if all(s in self._constant for s in sources) and _small(value):
            return self._fold(self._evaluate(node.target, args, kwargs))
        if sources and sources[0] in self._tensor and is_view(node.target):
            seen, root = self._evaluate(node.target, args, kwargs), self._root[sources[0]]
            if isinstance(seen, Tensor):
                return self.lasting(seen, root)
            self._parts[new := self._new(node, args, kwargs)] = [(s, root) for s in seen]
            return new
        if node.target is operator.getitem and args[0] in self._parts:
            return self.lasting(*self._parts[args[0]][args[1]])
        return self._new(node, args, kwargs)

    def _new(self, node: Node, args: Any, kwargs: Any) -> Node:
        new = self.graph.call_function(cast(Callable[..., Any], node.target), args, kwargs)
        new.meta["val"] = node.meta.get("val")
        return new

    def _evaluate(self, target: Any, args: Any, kwargs: Any) -> Any:
        return target(*map_arg(args, self._tensor.get), **map_arg(kwargs, self._tensor.get))

    def _fold(self, tensor: Tensor) -> Node:
        node = self.lasting(tensor)
        self._constant.add(node)
        return node

    def _versions(self, node: Node) -> Any:
        """A node by identity and, where it lasts, by how often it was written to."""
        root = self._root.get(node)
        return node if root is None else (node, self._version[root])

    # ------------------------------------------------------------------ result

    def compile(self, results: Sequence[Node] = ()) -> Callable[..., Any]:
        """The program: the given inputs, in their order, to ``results``."""
        self.graph.output(list(results))
        self.graph.eliminate_dead_code(_is_kept)
        fuse(self.graph)
        self.graph.eliminate_dead_code(_is_kept)
        used = [n for n in self._tensor if n.users]
        ordered, env = Graph(), {}
        for node in (*used, *self._given):
            env[node] = ordered.placeholder(node.name)
        for node in self.graph.nodes:
            if node.op != "placeholder":
                env[node] = ordered.node_copy(node, lambda n: env[n])
        tensors = [self._tensor[n] for n in used]
        return partial(GraphModule(torch.nn.Module(), ordered).forward, *tensors)


def _is_kept(node: Node) -> bool:
    return node.op in ("placeholder", "output") or not is_pure(node.target)


def _changes_nothing(target: Any, args: Any, value: Any) -> bool:
    if target in _SAME:
        return True
    if target is _aten.mul.Scalar:
        return bool(args[1] == 1) and args[0].meta["val"].dtype == value.dtype
    if target is _aten.permute.default:
        return list(args[1]) == list(range(len(args[1])))
    if target in _SAME_IF_SHAPED_ALIKE:
        return args[0].meta["val"].shape == value.shape
    return False


def _key(args: Any, numbers: Callable[[Node], Any]) -> Any:
    """Arguments as a dictionary key; 1, 1.0 and True are different ones, 0.0 and -0.0 too."""
    if isinstance(args, Node):
        return numbers(args)
    if isinstance(args, (list, tuple)):
        return tuple(_key(a, numbers) for a in args)
    return (type(args), repr(args) if isinstance(args, float) else args)


def _nodes(args: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(args, found.append)
    return found


def _small(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() <= _LARGEST_CONSTANT
