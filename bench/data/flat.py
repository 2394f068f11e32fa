"""Flat files in D4RL's layout, HDF5 or .npz: one row per transition, episodes back to back.

Read: `observations actions rewards terminals timeouts`, optionally `next_observations`; `infos/*`,
`metadata/*` and other keys are ignored. `env_id` and `max_episode_steps` are attributes in HDF5 and
arrays of one entry in .npz. An episode ends where terminals or timeouts is set; rows after the last
end are an unfinished episode. Observations may be a group of arrays (`observations/goal`, see
`bench.data.parts`) or uint8 images. d3rlpy's old layout is read too (`bench.data.legacy`).

Our own files add what that layout cannot say, in little space:
`final_observations` [episodes, d], the observation behind each episode's last action, instead of
`next_observations`; `valid_next` [n] where some next observation is unknown; `episode_lengths`
[episodes] where the episodes do not follow from the flags.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from bench.data import npz
from bench.data.dataset import canonical_arrays, episode_lengths
from bench.data.legacy import is_legacy, read_legacy
from bench.data.parts import Keys, join, ordered, refuse
from bench.data.raw import (
    BLOCK,
    Raw,
    blocks,
    count_broken,
    fail,
    scratch,
    stated_env,
    stated_limit,
    unread,
)
from bench.errors import DataError

if TYPE_CHECKING:
    from tensordict import TensorDict

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = (
    "timeouts", "next_observations", "final_observations", "valid_next", "episode_lengths",
)  # fmt: skip
OBSERVATIONS = ("observations", "next_observations", "final_observations")
BULK = (*OBSERVATIONS, "actions")
WRITTEN = (".hdf5", ".h5")
SUFFIXES = (*WRITTEN, ".npz")
CHUNK_ROWS = 16384

Read = Callable[[str], np.ndarray]  # an array by its path in the file


def read_flat(path: Path, keys: Keys = None, *, bulk: bool = True) -> Raw:
    """The columns of a flat file; `keys` chooses parts of observations that are dictionaries.
    Without `bulk` HDF5's observations and actions are not read: `unread` arrays stand for them.

    Raises `DataError` for a file that is missing, damaged or not in this layout.
    """
    source = str(path)
    if path.suffix == ".npz":
        with npz.opened(path) as (names, read):
            return _raw(source, names, read, _stated(names, read), keys)
    with open_hdf5(path) as file, readable(source):

        def read(key: str) -> np.ndarray:
            if bulk or key.split("/")[0] not in BULK:
                return read_array(source, file, key)
            node = _array_node(source, file, key)
            return unread(node.shape, node.dtype)

        return _raw(source, array_names(file), read, dict(file.attrs), keys)


def _raw(
    source: str, names: list[str], read: Read, attributes: Mapping[str, Any], keys: Keys
) -> Raw:
    top = {name.split("/")[0] for name in names}
    if is_legacy(top):
        return read_legacy(source, top, read, stated_env(source, attributes.get("env_id")))
    _check_layout(source, top)
    columns = {
        key: _column(source, names, read, key, keys) for key in REQUIRED + OPTIONAL if key in top
    }
    return Raw(
        source=source,
        observations=columns["observations"],
        actions=columns["actions"],
        rewards=columns["rewards"],
        terminated=columns["terminals"],
        truncated=columns.get("timeouts"),
        lengths=columns.get("episode_lengths"),
        next_observations=columns.get("next_observations"),
        final_observations=columns.get("final_observations"),
        valid_next=columns.get("valid_next"),
        env_id=stated_env(source, attributes.get("env_id")),
        max_episode_steps=stated_limit(source, attributes.get("max_episode_steps")),
        attributes={key: value for key, value in attributes.items() if isinstance(value, str)},
    )


def _column(source: str, names: list[str], read: Read, key: str, keys: Keys) -> np.ndarray:
    """One array, or the parts of a dictionary side by side."""
    parts = [name[len(key) + 1 :] for name in names if name.startswith(f"{key}/")]
    if not parts:
        if key in OBSERVATIONS:
            refuse(source, key, keys)
        return read(key)
    if key not in OBSERVATIONS:
        fail(source, key, "is a group of arrays", "only observations may be dictionaries")
    chosen = ordered(source, key, parts, keys)
    return join(source, key, {name: read(f"{key}/{name}") for name in chosen})


def array_names(file: h5py.Group) -> list[str]:
    """Paths of all arrays below a group."""
    found: list[str] = []
    file.visititems(
        lambda name, node: found.append(name) if not isinstance(node, h5py.Group) else None
    )
    return found


def _stated(names: list[str], read: Read) -> dict[str, Any]:
    """What .npz keeps as arrays of one entry."""
    return {key: read(key)[()] for key in ("env_id", "max_episode_steps") if key in names}


@contextmanager
def readable(source: str) -> Iterator[None]:
    """What h5py raises inside a damaged file becomes one `DataError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{source}: {_DAMAGED} ({_short(error)}); {_REPLACE}") from error


_DAMAGED, _REPLACE = "is HDF5, but damaged or cut short", "replace it by an intact copy"


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, without a lock (the folder may be read-only)."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: {_unreadable(path, error)}") from error


def _unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that HDF5 does not open, and what to do about it."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as refused:
        return f"cannot be read ({refused.strerror}); mend its permissions or give another file"
    if not start:
        return "is empty (0 bytes); write it again or give another file"
    if h5py.is_hdf5(path):
        return f"{_DAMAGED} ({_short(error)}); {_REPLACE}"
    return f"is not HDF5 (it begins with {start!r}); give a flat HDF5 file or a Minari folder"


def read_array(source: str, group: h5py.Group, key: str) -> np.ndarray:
    """One numeric array [n, ...] of `group`."""
    node = _array_node(source, group, key)
    try:
        if node.size == 0 or len(node) <= BLOCK:
            return node[()]
        out = scratch(node.shape, node.dtype)
        for rows in blocks(len(node)):
            node.read_direct(out, rows, rows)
        return out
    except (OSError, MemoryError, ValueError) as error:
        what = f"cannot be read, the file is damaged ({_short(error)})"
        fail(source, key, what, _REPLACE)


def _array_node(source: str, group: h5py.Group, key: str) -> h5py.Dataset:
    node = group[key]
    if not isinstance(node, h5py.Dataset):
        fail(source, key, "is a group of arrays", "it must be one array")
    if node.dtype.kind not in "biuf" or node.ndim == 0:
        fail(source, key, f"holds {node.dtype} of shape {node.shape}", "it must be a numeric array")
    return node


def _short(error: Exception) -> str:
    """HDF5's reason without its nested details."""
    return str(error).split("\n")[0][:120]


def _check_layout(source: str, top: set[str]) -> None:
    """A clear word where the file is another known layout or lacks a key."""
    if "episode_0" in top:
        fail(
            source,
            "episode_0",
            "is the inside of a Minari dataset",
            "give the dataset's folder, the one that holds data/",
        )
    for key in REQUIRED:
        if key not in top:
            fail(
                source,
                key,
                f"missing key (the file has {', '.join(sorted(top)) or 'none'})",
                f"needed are {', '.join(REQUIRED)}",
            )


def write_flat(
    path: Path,
    transitions: TensorDict,
    *,
    env_id: str | None,
    max_episode_steps: int | None = None,
    attributes: Mapping[str, str | int | float] | None = None,
) -> None:
    """Write transitions (see `Dataset`) as one compressed file, atomically.

    Reading it back gives the same arrays bit for bit, and the same arrays and attributes give the
    same bytes. `attributes` records where the data comes from.
    """
    from bench.store import atomic_write

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, array in flat_columns(transitions).items():
            rows = min(len(array), CHUNK_ROWS)
            file.create_dataset(
                key, data=array, chunks=(rows, *array.shape[1:]),
                compression="gzip", compression_opts=9, shuffle=True,
            )  # fmt: skip
        file.attrs.update(attributes or {})
        if env_id is not None:
            file.attrs["env_id"] = env_id
        if max_episode_steps is not None:
            file.attrs["max_episode_steps"] = max_episode_steps
    atomic_write(Path(path), buffer.getvalue())


def flat_columns(transitions: TensorDict) -> dict[str, np.ndarray]:
    """Arrays of the file, by key."""
    arrays = canonical_arrays(transitions)
    lengths = episode_lengths(transitions)
    ends = np.cumsum(lengths) - 1
    following = transitions["next", "observation"].numpy()
    valid = transitions["valid_next"].numpy()
    out = {key: arrays[key] for key in ("observations", "actions", "rewards")}
    out |= {"terminals": arrays["terminated"], "timeouts": arrays["truncated"]}
    if broken_chain(transitions):
        out["next_observations"] = following
    else:
        out["final_observations"] = following[ends]
    if not valid.all():
        out["valid_next"] = valid
    done = arrays["terminated"] | arrays["truncated"]
    done[-1] = True  # an unfinished tail follows from the flags too
    if not np.array_equal(np.flatnonzero(done), ends):
        out["episode_lengths"] = lengths
    return out


def broken_chain(transitions: TensorDict) -> int:
    """Rows whose next observation differs from the episode's following observation."""
    following = transitions["next", "observation"].numpy()
    inside = transitions["t"].numpy()[1:] != 0
    return count_broken(transitions["observation"].numpy(), following, inside)
