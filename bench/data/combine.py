"""Several datasets of one task, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.data.card import Behaviour
from bench.data.dataset import Dataset, fingerprint, fingerprint_next, statistics
from bench.data.transitions import COUNTS
from bench.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


_MIXED = Behaviour("the parts are of several policies, not all of whose episodes are evaluations'")


def combine(parts: Sequence[Dataset], name: str | None = None) -> Dataset:
    """All transitions of the first part, then of the second, ...; episodes are renumbered.

    Environment, horizon, spaces and reference must agree. Without a `name` it becomes
    'combined-<fingerprint[:8]>'. Raises `DataError` naming the two parts that disagree and how.
    """
    from tensordict import TensorDict

    if not parts:
        raise DataError("combine: no datasets given; give at least one")
    for part in parts[1:]:
        _check_same(parts[0], part)
    transitions = TensorDict.cat([part.transitions for part in parts])
    transitions["episode"] = _episodes(transitions["t"])
    digest = fingerprint(transitions)
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update({key: int(part.stats[key]) for key in COUNTS})
    return replace(
        parts[0],
        name=name or f"combined-{digest[:8]}",
        transitions=transitions,
        fingerprint=digest,
        fingerprint_next=fingerprint_next(transitions),
        stats=statistics(transitions, counts),
        n_actions=max((p.n_actions for p in parts if p.n_actions is not None), default=None),
        behaviour=parts[0].behaviour if len({p.behaviour for p in parts}) == 1 else _MIXED,
    )


def _episodes(t: Tensor) -> Tensor:
    """Number of the episode of each row, int64 [n]: a new one starts where t is 0."""
    return (t == 0).cumsum(0) - 1


def _check_same(first: Dataset, other: Dataset) -> None:
    for key in ("recorded_env_id", "family", "horizon", "discrete", "reference"):
        _same(first, other, key, getattr(first, key), getattr(other, key))
    if first.recorded_env_id is not None:
        _same(first, other, "n_actions", first.n_actions, other.n_actions)
    for key, a, b in [
        ("action_low", first.action_low, other.action_low),
        ("action_high", first.action_high, other.action_high),
    ]:
        _same(first, other, key, _plain(a), _plain(b))
    seen = [part.transitions["observation"] for part in (first, other)]
    _same(first, other, "observations", *(f"{o.dtype} {list(o.shape[1:])}" for o in seen))


def _plain(tensor: Tensor | None) -> list[float] | None:
    return None if tensor is None else tensor.tolist()


def _same(first: Dataset, other: Dataset, key: str, a: object, b: object) -> None:
    if a != b:
        raise DataError(
            f"combine: {key}: {first.name} has {a}, {other.name} has {b}; "
            "only data of the same task can be combined"
        )
