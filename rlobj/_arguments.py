"""Constructor arguments that the signatures keep and refuse, or pass on."""

from __future__ import annotations

import inspect

_ELSEWHERE = {
    "gamma": "use make_value_estimator(gamma=...)",
    "lmbda": "use make_value_estimator(lmbda=...)",
    "entropy_coef": "removed in torchrl v0.11, use entropy_coeff",
    "critic_coef": "removed in torchrl v0.11, use critic_coeff",
}


def refuse(**given: object) -> None:
    """Say where an argument went that older scripts pass to a loss's constructor; None passes.

    Raises:
        TypeError: for ``gamma``, ``lmbda``, ``entropy_coef`` and ``critic_coef``.
        RuntimeError: for a key's name.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name in _ELSEWHERE:
            raise TypeError(f"{name} is no argument of a loss: {_ELSEWHERE[name]}")
        instead = f".set_keys({name.removesuffix('_key')}={value!r})"
        raise RuntimeError(f"{name} via the constructor is deprecated, use {instead}")


def show_shared(cls: type, base: type) -> None:
    """Let a constructor's signature and help text name what it passes on to ``base``."""
    own = inspect.signature(cls.__init__)  # type: ignore[misc]
    if not any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
        return
    shared = inspect.signature(base.__init__).parameters  # type: ignore[misc]
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named += [p for k, p in shared.items() if k not in own.parameters and k[0] != "_"]
    cls.__init__.__signature__ = own.replace(parameters=named)  # type: ignore[misc]
