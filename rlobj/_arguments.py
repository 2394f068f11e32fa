"""Constructor arguments that the signatures keep and refuse."""

from __future__ import annotations

_ELSEWHERE = {
    "gamma": "use make_value_estimator(gamma=...)",
    "entropy_coef": "removed in torchrl v0.11, use entropy_coeff",
    "critic_coef": "removed in torchrl v0.11, use critic_coeff",
}


def refuse(**given: object) -> None:
    """Say where an argument went that older scripts pass to a loss's constructor; None passes.

    Raises:
        TypeError: for ``gamma``, ``entropy_coef`` and ``critic_coef``.
        RuntimeError: for a key's name.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name in _ELSEWHERE:
            raise TypeError(f"{name} is no argument of a loss: {_ELSEWHERE[name]}")
        instead = f".set_keys({name.removesuffix('_key')}={value!r})"
        raise RuntimeError(f"{name} via the constructor is deprecated, use {instead}")
