"""Puts a mutant into a process that has imported rlobj: the functions it changes get their new
code. Nothing is written to disk, nothing is imported anew."""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from tests.mutants.plan import ROOT, Mutant, applied

Pair = tuple[CodeType, CodeType]


def functions_of(package: Path = ROOT / "rlobj") -> list[FunctionType]:
    """Every function of the package that exists by now, those that decorators made included."""
    place = f"{package}/"
    found = (f for f in gc.get_objects() if type(f) is FunctionType)
    return [f for f in found if f.__code__.co_filename.startswith(place)]


def code_of(tree: ast.Module, file: str, root: Path = ROOT) -> CodeType:
    ast.fix_missing_locations(tree)
    return compile(tree, str(root / file), "exec", dont_inherit=True)


def changed(tree: ast.Module, mutant: Mutant, root: Path = ROOT) -> list[Pair]:
    """The code of each function that the mutant changes, before and after.

    A function that has been built holds as many free variables as its code wants: where a mutant
    drops the last use of one, it is named in a branch that is never taken.
    """
    old = code_of(tree, mutant.file, root)
    with applied(mutant):
        found = list(_differing(old, code_of(tree, mutant.file, root)))
        lost = [o for o, n in found if o.co_freevars != n.co_freevars]
        if lost:
            with _named(tree, lost):
                found = list(_differing(old, code_of(tree, mutant.file, root)))
    return [(o, n) for o, n in found if o.co_name != "<module>"]


def _differing(old: CodeType, new: CodeType) -> Iterator[Pair]:
    if old == new:
        return
    yield old, new
    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (old, new)]
    if len(inner[0]) == len(inner[1]):
        for pair in zip(*inner, strict=True):
            yield from _differing(*pair)


@contextmanager
def _named(tree: ast.Module, codes: list[CodeType]) -> Iterator[None]:
    """In the functions that these are the code of, all their free variables are mentioned."""
    bodies = []
    for code in codes:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first == code.co_firstlineno:
                    mention = ast.parse(f"if 0: ({', '.join(code.co_freevars)},)").body
                    bodies.append((node, node.body))
                    node.body = [*mention, *node.body]
    try:
        yield
    finally:
        for function, body in bodies:
            function.body = body


def install(
    tree: ast.Module, mutant: Mutant, functions: list[FunctionType], root: Path = ROOT
) -> None:
    """Make this process run the mutant.

    Raises:
        RuntimeError: when it would change nothing.
    """
    if mutant.constant:
        _set_constant(mutant)
        return
    done = False
    for old, new in changed(tree, mutant, root):
        for function in functions:
            if function.__code__ == old and function.__code__.co_filename == old.co_filename:
                function.__code__ = new
                done = True
    if not done:
        raise RuntimeError(f"no function runs this code: {mutant.key}")


def callers(
    tree: ast.Module, mutant: Mutant, functions: list[FunctionType], root: Path = ROOT
) -> set[str]:
    """The functions of rlobj, as :func:`place_of` names them, that run changed code."""
    if mutant.constant:
        name = _target(mutant)
        return {place_of(f.__code__) for f in functions if name in f.__code__.co_names}
    return {place_of(old) for old, _ in changed(tree, mutant, root)}


def place_of(code: CodeType) -> str:
    file = code.co_filename.removeprefix(f"{ROOT}/")
    return f"{file}:{code.co_firstlineno}:{code.co_name}"


def _target(mutant: Mutant) -> str:
    statement = mutant.constant
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    return ast.unparse(target)


def _set_constant(mutant: Mutant) -> None:
    """A constant of a module or class, also where other modules imported it."""
    module: Any = sys.modules[mutant.file.removesuffix(".py").replace("/", ".")]
    name, owner = _target(mutant), module
    for part in filter(None, mutant.where.split(".")):
        owner = getattr(owner, part)
    with applied(mutant):
        new = eval(ast.unparse(mutant.constant.value), vars(module))
    old = getattr(owner, name)
    setattr(owner, name, new)
    for other in [m for m in sys.modules.values() if vars(m).get(name) is old]:
        setattr(other, name, new)
