"""One module per algorithm, named after it. Importing the package loads none of them."""

from __future__ import annotations

import difflib
import fnmatch
import pkgutil
from collections.abc import Iterable
from functools import cache

from bench.errors import ConfigError


@cache
def recipe_names() -> tuple[str, ...]:
    """Names of all recipes, by file name."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def check_name(name: str) -> None:
    """Raises ConfigError with the nearest names where there is no such recipe."""
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), 3)
        known = f"known are {', '.join(recipe_names())}"
        hint = f"did you mean {', '.join(near)}?" if near else known
        raise ConfigError(f"unknown algorithm {name!r}: {hint}")


def expand_names(patterns: Iterable[str]) -> list[str]:
    """The names that names and globs stand for, in the order asked for, each once."""
    names: list[str] = []
    for pattern in patterns:
        names += fnmatch.filter(recipe_names(), pattern) or [pattern]
    for name in names:
        check_name(name)
    return list(dict.fromkeys(names))
