"""Raw columns as a file holds them, and their checked conversion. Nothing is repaired silently.

Arrays beyond `IN_MEMORY` bytes lie in nameless files under the cache: the system keeps of them in
memory what fits, so that loading and checking a set larger than the memory works.
"""

import errno
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

import numpy as np

from bench.data.card import data_root
from bench.errors import DataError

IN_MEMORY = 1 << 27  # bytes; a larger array is mapped from a file
BLOCK = 1 << 16  # rows that are looked at together


class DataWarning(UserWarning):
    """Something about the data that a user should know and that did not stop the load."""


@dataclass(frozen=True)
class ActionSpec:
    """Either `n` discrete actions 0..n-1, or the bounds `low`, `high` float32 [a]."""

    n: int | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass
class Raw:
    """Columns of n transitions in file order, with whatever dtype and shape the file gave them.

    `lengths` [episodes] is set where the format itself knows the episodes; otherwise they follow
    from the flags. `truncated` None means that the file does not say. `actions_spec` is what the
    file says of its action space, `attributes` what else it says of itself, in texts.
    """

    source: str
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray | None
    lengths: np.ndarray | None = None
    next_observations: np.ndarray | None = None
    final_observations: np.ndarray | None = None
    valid_next: np.ndarray | None = None
    env_id: str | None = None
    max_episode_steps: int | None = None
    actions_spec: ActionSpec | None = None
    single_rows: int = 0  # legacy episodes of one observation, which hold no transition
    attributes: dict[str, str] = field(default_factory=dict)


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover `rows` rows, in order."""
    return (slice(start, min(start + BLOCK, rows)) for start in range(0, rows, BLOCK))


def scratch(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An array to fill: in memory, or if it is larger than `IN_MEMORY`, in a nameless file.

    Raises `DataError` where the disk has no room for it: a process that writes to mapped pages
    without one is killed.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    folder = data_root() / "cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            allocate(file, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{folder}: {size:,} bytes are needed there for an array that is larger than "
            f"{IN_MEMORY:,} ({error.strerror or error}); free space, or make the folder a link "
            "to another disk"
        ) from error


def allocate(file: IO[bytes], size: int) -> None:
    """Give a new file its blocks on disk, by the system's call where there is one, else by writing.
    `OSError` where there is no room."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    nothing = bytes(min(size, 1 << 24))
    for start in range(0, size, len(nothing)):
        file.write(nothing[: size - start])
    file.flush()


def unread(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """Stands for an array that nobody looks at; takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def fail(source: str, key: str, what: str, mend: str) -> NoReturn:
    """Raise a `DataError` whose one line names the file, the key, the fault and the mend."""
    raise DataError(" ".join(f"{source}: {key}: {what}; {mend}".split()))


def warn(source: str, text: str) -> None:
    """One `DataWarning` on one line that starts with the file."""
    warnings.warn(" ".join(f"{source}: {text}".split()), DataWarning, stacklevel=2)


def stated_env(source: str, value: Any) -> str | None:
    """What a file calls its environment; None if nothing."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if value is None or isinstance(value, str):
        return value or None
    fail(source, "env_id", f"is {value!r}", "it must be a text, or give --env-id")


def stated_limit(source: str, value: Any) -> int | None:
    """A file's max_episode_steps as a positive int."""
    if value is None:
        return None
    number = np.asarray(value)
    plain = number.ndim == 0 and number.dtype.kind in "iuf" and bool(np.isfinite(number))
    if plain and 0 < number < 2**53 and number == int(number):
        return int(number)
    fail(source, "max_episode_steps", f"is {value!r}", "the attribute must be a positive integer")


def first_row(bad: np.ndarray) -> int:
    """Index of the first row of `bad` [n, ...] that holds a True."""
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])


def observation_array(source: str, key: str, array: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Finite float32 [n, d] from [n] or [n, d]; images [n, ...] stay uint8. Conversions are
    counted."""
    if array.ndim <= 2:
        return _finite32(source, key, array.reshape(len(array), -1), counts)
    if array.dtype != np.uint8:
        shape = " x ".join(map(str, array.shape[1:]))
        what = f"entries are {shape} arrays of {array.dtype}"
        fail(source, key, what, "images must be uint8, and other observations vectors")
    return np.ascontiguousarray(array)


def float_matrix(source: str, key: str, array: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Finite float32 [n, d]; a [n] array becomes [n, 1]. Conversions are counted."""
    if array.ndim > 2:
        shape = " x ".join(map(str, array.shape[1:]))
        fail(source, key, f"entries are {shape} arrays", "only vectors are supported")
    return _finite32(source, key, array.reshape(len(array), -1), counts)


def float_column(source: str, key: str, array: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Finite float32 [n] from [n] or [n, 1]."""
    return _finite32(source, key, column(source, key, array), counts)


def column(source: str, key: str, array: np.ndarray) -> np.ndarray:
    """[n] from [n] or [n, 1] (older files keep a trailing axis)."""
    if array.size != len(array):
        fail(source, key, f"has shape {array.shape}", "store one number per row")
    return array.reshape(len(array))


def flag_column(source: str, key: str, array: np.ndarray) -> np.ndarray:
    """Bool [n] from bools or from numbers that are 0 or 1."""
    array = column(source, key, array)
    bad = (array != 0) & (array != 1)
    if bad.any():
        row = first_row(bad)
        fail(source, key, f"row {row} is {array[row]}", "flags must be 0 or 1")
    return array.astype(bool)


def _finite32(source: str, key: str, array: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """`array` as float32; NaN, infinities and float64 values beyond float32 are errors."""
    same = array.dtype == np.float32
    out = np.ascontiguousarray(array) if same else scratch(array.shape, np.float32)
    if not same:
        counts["converted_arrays"] += 1
        counts["converted_entries"] += array.size
    for rows in blocks(len(array)):
        if not same:
            with np.errstate(over="ignore"):  # an overflow becomes inf and is reported below
                out[rows] = array[rows]
        finite = np.isfinite(out[rows])
        if not finite.all():
            row = first_row(~finite)
            bad = np.atleast_1d(array[rows][row])[~np.atleast_1d(finite[row])][0]
            row += rows.start
            fail(source, key, f"row {row} holds {bad}", "remove its episode or record it again")
    return out


def clean_actions(
    raw: Raw, spec: ActionSpec | None, counts: Counter[str]
) -> tuple[np.ndarray, ActionSpec]:
    """Actions int64 [n] or float32 [n, a], not yet clipped, and the action space they belong to.

    Without `spec` (unknown environment) integers are discrete, and bounds are -1..1 where all
    actions lie inside, else the observed range.
    """
    discrete = spec.n is not None if spec else raw.actions.dtype.kind in "iub"
    if discrete:
        return _discrete_actions(raw, spec)
    actions = float_matrix(raw.source, "actions", raw.actions, counts)
    if spec is None:
        return actions, _observed_bounds(actions)
    assert spec.low is not None
    if actions.shape[1] != len(spec.low):
        what = f"{actions.shape[1]} numbers per action where {raw.env_id} takes {len(spec.low)}"
        fail(raw.source, "actions", what, "give the environment that recorded them with --env-id")
    return actions, spec


def _observed_bounds(actions: np.ndarray) -> ActionSpec:
    """-1..1 if every action lies inside, else each dimension's smallest and largest value."""
    if np.abs(actions).max() <= 1:
        ones = np.ones(actions.shape[1], dtype=np.float32)
        return ActionSpec(low=-ones, high=ones)
    return ActionSpec(low=actions.min(axis=0), high=actions.max(axis=0))


def _discrete_actions(raw: Raw, spec: ActionSpec | None) -> tuple[np.ndarray, ActionSpec]:
    """Whole numbers 0..n-1 as int64 [n]."""
    values = column(raw.source, "actions", raw.actions)
    whole = np.isfinite(values) & (values == np.floor(values))
    limit = spec.n if spec and spec.n else np.inf
    bad = ~whole | (values < 0) | (values >= limit)
    if bad.any():
        row = first_row(bad)
        upto = "whole numbers from 0" if limit == np.inf else f"whole numbers 0 to {limit - 1}"
        fail(raw.source, "actions", f"row {row} is {values[row]}", f"actions must be {upto}")
    actions = values.astype(np.int64)
    return actions, spec or ActionSpec(n=int(actions.max()) + 1)


def clip_actions(
    actions: np.ndarray, spec: ActionSpec, counts: Counter[str]
) -> tuple[np.ndarray, str | None]:
    """Continuous actions clipped to the bounds, and a sentence about it (None if nothing was)."""
    assert spec.low is not None and spec.high is not None
    inside = (
        (actions[rows] >= spec.low) & (actions[rows] <= spec.high) for rows in blocks(len(actions))
    )
    outside = sum(int((~found).sum()) for found in inside)
    counts["clipped_entries"] += outside
    if not outside:
        return actions, None
    share = 100 * outside / actions.size
    bounds = f"[{spec.low.min():g}, {spec.high.max():g}]"
    what = f"{outside} of {actions.size} entries ({share:.1f} %) lie outside {bounds}"
    return np.clip(actions, spec.low, spec.high, out=scratch(actions.shape, np.float32)), what


def count_broken(observations: np.ndarray, following: np.ndarray, inside: np.ndarray) -> int:
    """Rows i with `inside[i]` whose following observation is not observation i + 1."""
    broken = 0
    for rows in blocks(len(inside)):
        after = observations[rows.start + 1 : rows.stop + 1]
        differs = (following[rows] != after).reshape(len(after), -1).any(axis=1)
        broken += int((differs & inside[rows]).sum())
    return broken
