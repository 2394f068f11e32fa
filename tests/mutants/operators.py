"""What can be wrong in a line of maths: one function per kind of bug, each from a node of the
syntax tree to the nodes that stand in its place."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

AST = ast.AST


@dataclass(frozen=True)
class Place:
    """Where a node stands."""

    parent: AST
    function: ast.FunctionDef | None = None
    constant: AST | None = None  # the statement that sets a constant of a module or class
    no_grad: bool = False
    names: frozenset[str] = frozenset()  # attributes that the file mentions
    # keyword -> methods that take it, of those that ask a network
    takes: dict[str, set[str]] = field(default_factory=dict)


Operator = Callable[[AST, Place], Iterator[AST]]

OTHERWISE: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
EXTREMES = {"min": "max", "minimum": "maximum", "amin": "amax", "argmin": "argmax"}
EXTREMES |= {
    "clamp_min": "clamp_max",
    "cummin": "cummax",
    "fmin": "fmax",
    "logical_and": "logical_or",
}
EXTREMES |= {new: old for old, new in EXTREMES.items()}
REDUCTIONS = {"sum": "mean", "mean": "sum", "all": "any", "any": "all"}
CONFUSED = {"terminated": "done", "tau": "eps", "low": "high", "gamma": "lmbda", "rho": "c"}
CONFUSED |= {"value": "next_value", "v": "v2", "state_value": "next_state_value"}
CONFUSED |= {"min_action": "max_action", "rho_thresh": "c_thresh", "actor": "critic"}
CONFUSED |= {new: old for old, new in CONFUSED.items()}
# Methods and functions of one tensor whose result could be used without them.
MAPS = {"clamp", "clamp_min", "clamp_max", "clip", "log", "exp", "log1p", "expm1", "abs", "pow"}
MAPS |= {"square", "sqrt", "tanh", "atanh", "sigmoid", "softplus", "log_softmax", "softmax"}
MAPS |= {"cumsum", "cumprod", "squeeze", "unsqueeze", "masked_fill", "log_ndtr", "ndtri", "flip"}
# Two arguments that may stand either way round, or are no operands of maths.
EITHER_WAY = {"minimum", "maximum", "logical_and", "logical_or", "min", "max", "zip", "isinstance"}
EITHER_WAY |= {"mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "_distance"}
EITHER_WAY |= {"one_shape", "getattr", "hasattr", "setattr", "cast", "get", "set", "reduce"}
BATCHES = {"tensordict", "after", "data", "inputs", "batch"}


def called(node: AST) -> str:
    """The last part of the name of what is called; "" where nothing is."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def is_number(node: AST, kind: type | tuple[type, ...] = (int, float)) -> bool:
    """Whether it is a literal number, with or without a minus."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return (
        isinstance(node, ast.Constant)
        and type(node.value) in (int, float)
        and isinstance(node.value, kind)
    )


def is_text(node: AST) -> bool:
    """Whether a sum of it would be no maths: lists, tuples, strings."""
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    if isinstance(node, ast.Constant):
        return not is_number(node)
    return isinstance(node, ast.Tuple | ast.List | ast.ListComp | ast.JoinedStr)


def sign(node: AST, at: Place) -> Iterator[AST]:
    """``-x`` -> ``x``; the sign of axes and indices is ``constant``'s."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not is_number(node, int):
        yield node.operand


def arithmetic(node: AST, at: Place) -> Iterator[AST]:
    """``+`` <-> ``-``, ``*`` <-> ``/``, ``**`` -> ``*``, ``&`` <-> ``|``."""
    if isinstance(node, ast.BinOp) and not is_text(node.left) and not is_text(node.right):
        for op in OTHERWISE.get(type(node.op), ()):
            yield ast.BinOp(node.left, op(), node.right)


def dropped_term(node: AST, at: Place) -> Iterator[AST]:
    """``a + b`` and ``a * b`` -> ``a``, ``b``; ``a - b``, ``a / b``, ``a ** b``, ``a % b`` ->
    ``a``; ``1 - x`` -> ``x``."""
    if not isinstance(node, ast.BinOp) or is_text(node.left) or is_text(node.right):
        return
    if not (isinstance(node.op, ast.Sub) and is_number(node.left)):
        yield node.left
    if isinstance(node.op, ast.Add | ast.Mult) or is_number(node.left):
        yield node.right


def extreme(node: AST, at: Place) -> Iterator[AST]:
    """``min`` <-> ``max``, as a method, function, keyword or in ``clamp_min`` and the like."""
    if isinstance(node, ast.Attribute) and node.attr in EXTREMES:
        yield ast.Attribute(node.value, EXTREMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in ("min", "max"):
        yield ast.Name(EXTREMES[node.id], node.ctx)
    elif isinstance(node, ast.keyword) and node.arg in ("min", "max"):
        yield ast.keyword(EXTREMES[node.arg], node.value)


def comparison(node: AST, at: Place) -> Iterator[AST]:
    """``<`` -> ``<=``, ``>`` and so on; ``==`` <-> ``!=``, ``is`` <-> ``is not``."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for op in OTHERWISE[type(node.ops[0])]:
            yield ast.Compare(node.left, [op()], node.comparators)


def condition(node: AST, at: Place) -> Iterator[AST]:
    """``if x`` -> ``if not x``, ``not x`` -> ``x``, ``~x`` -> ``x``, ``and`` <-> ``or``."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OTHERWISE[type(node.op)][0](), node.values)
    elif node is getattr(at.parent, "test", None) and not isinstance(node, ast.Compare):
        yield ast.UnaryOp(ast.Not(), node)


def constant(node: AST, at: Place) -> Iterator[AST]:
    """Numbers: x -> 2 x, 0.0 -> 1.0, n -> n + 1, an index or axis 1 -> 0 and -n -> 1 - n."""
    if not is_number(node) or (isinstance(at.parent, ast.UnaryOp) and is_number(at.parent)):
        return
    value = ast.literal_eval(node)
    if isinstance(value, float):
        yield ast.Constant(2 * value if value else 1.0)
    elif value == 1 and isinstance(at.parent, ast.Call | ast.Subscript | ast.Slice | ast.keyword):
        yield ast.Constant(0)
    else:
        yield ast.Constant(value + 1)


def flag(node: AST, at: Place) -> Iterator[AST]:
    """``name=True`` <-> ``name=False``; ``target=...``, ``detach=...``, ``members=...`` dropped.
    ``strict=True`` only checks."""
    if not isinstance(node, ast.keyword) or node.arg in (None, "strict"):
        return
    if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
        yield ast.keyword(node.arg, ast.Constant(not node.value.value))
    elif node.arg in ("target", "detach", "members"):
        nothing = None if node.arg == "members" else False
        yield ast.keyword(node.arg, ast.Constant(nothing))


def other_network(node: AST, at: Place) -> Iterator[AST]:
    """``target=True`` or ``detach=True`` added to a call that asks an online network."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    given = {k.arg for k in node.keywords}
    if given & {"target", "detach", None}:
        return
    for word in ("target",) if at.no_grad else ("target", "detach"):
        if called(node) in at.takes.get(word, ()):
            more = ast.keyword(word, ast.Constant(True))
            yield ast.Call(node.func, node.args, [*node.keywords, more])


def detached(node: AST, at: Place) -> Iterator[AST]:
    """``x.detach()`` -> ``x``; a returned loss -> ``loss.detach()``."""
    if called(node) == "detach" and isinstance(node, ast.Call) and not node.args:
        yield node.func.value  # type: ignore[attr-defined]
    function = at.function
    if not isinstance(node, ast.Return) or not function or not function.name.endswith("loss"):
        return
    several = "tuple" in ast.unparse(function.returns or ast.Constant(None))
    if isinstance(node.value, ast.Tuple):
        first, *rest = node.value.elts
        yield ast.Return(ast.Tuple([_method(first, "detach"), *rest], ast.Load()))
    elif node.value is not None and not several:
        yield ast.Return(_method(node.value, "detach"))


def grad_mode(node: AST, at: Place) -> Iterator[AST]:
    """``torch.no_grad()`` -> ``torch.enable_grad()``, as a block or a decorator."""
    if called(node) == "no_grad":
        yield ast.parse("torch.enable_grad()", mode="eval").body
    elif isinstance(node, ast.FunctionDef) and any(map(_no_grad, node.decorator_list)):
        block = ast.parse("with torch.enable_grad(): pass").body[0]
        block.body = node.body  # type: ignore[attr-defined]
        own = {name: getattr(node, name) for name in node._fields}
        yield ast.copy_location(ast.FunctionDef(**{**own, "body": [block]}), node)


def swapped(node: AST, at: Place) -> Iterator[AST]:
    """``f(a, b)`` -> ``f(b, a)``, where both are expressions and none is a batch."""
    if not isinstance(node, ast.Call) or called(node) in EITHER_WAY or len(node.args) != 2:
        return
    odd = (isinstance(a, ast.Starred) or is_text(a) or ast.unparse(a) in BATCHES for a in node.args)
    if not any(odd) and not all(isinstance(a, ast.Constant) for a in node.args):
        yield ast.Call(node.func, node.args[::-1], node.keywords)


def confused(node: AST, at: Place) -> Iterator[AST]:
    """A name for its sibling, where the file has that one, too: ``terminated`` <-> ``done``, ..."""
    if not isinstance(getattr(node, "ctx", None), ast.Load):
        return
    if isinstance(node, ast.Attribute) and CONFUSED.get(node.attr) in at.names:
        yield ast.Attribute(node.value, CONFUSED[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and CONFUSED.get(node.id) in _bound(at.function):
        yield ast.Name(CONFUSED[node.id], node.ctx)


def reduction(node: AST, at: Place) -> Iterator[AST]:
    """``sum`` <-> ``mean``, ``all`` <-> ``any``."""
    if isinstance(node, ast.Attribute) and node.attr in REDUCTIONS:
        yield ast.Attribute(node.value, REDUCTIONS[node.attr], node.ctx)


def dropped_call(node: AST, at: Place) -> Iterator[AST]:
    """``x.clamp(...)``, ``x.log()``, ``torch.log1p(x)`` and the like -> ``x``."""
    if not isinstance(node, ast.Call) or called(node) not in MAPS:
        return
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    if owner is None or ast.unparse(owner) in ("torch", "F", "math"):
        yield node.args[0]
    else:
        yield owner


def dropped_statement(node: AST, at: Place) -> Iterator[AST]:
    """A call for its effect, ``x += y`` or ``self.x = y`` -> nothing; not where a loss is built."""
    if at.function is None or at.function.name == "__init__":
        return
    effect = isinstance(node, ast.Expr) and called(node.value) not in ("", "warn", "__init__")
    kept = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    if effect or kept or isinstance(node, ast.AugAssign):
        yield ast.Pass()


_ALL: tuple[Operator, ...] = (sign, arithmetic, dropped_term, extreme, comparison, condition)
_ALL += (constant, flag, other_network, detached, grad_mode, swapped, confused, reduction)
_ALL += (dropped_call, dropped_statement)
OPERATORS: dict[str, Operator] = {f.__name__: f for f in _ALL}


def _method(node: ast.expr, name: str) -> ast.Call:
    return ast.Call(ast.Attribute(node, name, ast.Load()), [], [])


def _no_grad(node: AST) -> bool:
    return called(node) == "no_grad"


def _bound(function: AST | None) -> set[str]:
    """The names of a function's arguments and variables."""
    found = set()
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
