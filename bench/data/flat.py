"""Flat HDF5 files in D4RL's layout: one row per transition, episodes back to back.

Read: `observations actions rewards terminals timeouts`, optionally `next_observations`; `infos/*`,
`metadata/*` and other keys are ignored. Attributes `env_id` and `max_episode_steps`. An episode
ends where terminals or timeouts is set; rows after the last end are an unfinished episode.

Our own files add what that layout cannot say, in little space:
`final_observations` [episodes, d], the observation behind each episode's last action, instead of
`next_observations`; `valid_next` [n] where some next observation is unknown; `episode_lengths`
[episodes] where the episodes do not follow from the flags.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tensordict import TensorDict

from bench.data.dataset import canonical_arrays, episode_lengths
from bench.data.raw import Raw, fail
from bench.errors import DataError

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = (
    "timeouts", "next_observations", "final_observations", "valid_next", "episode_lengths",
)  # fmt: skip
CHUNK_ROWS = 16384


def read_flat(path: Path) -> Raw:
    """The columns of a flat file.

    Raises `DataError` for a file that is missing, damaged or not in this layout.
    """
    source = str(path)
    with open_hdf5(path) as file:
        _check_layout(source, file)
        columns = {k: read_array(source, file, k) for k in REQUIRED + OPTIONAL if k in file}
        env_id, limit = file.attrs.get("env_id"), file.attrs.get("max_episode_steps")
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
        env_id=env_id.decode() if isinstance(env_id, bytes) else env_id,
        max_episode_steps=_limit(source, limit),
    )


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, without a lock (the folder may be read-only)."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path}: {_unreadable(path, error)}") from error


def _unreadable(path: Path, error: OSError) -> str:
    """What is wrong with a file that HDF5 does not open, and what to do about it."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as refused:
        return f"cannot be read ({refused.strerror}); mend its permissions or give another file"
    if not start:
        return "is empty (0 bytes); write it again or give another file"
    if h5py.is_hdf5(path):
        return f"is HDF5, but damaged or cut short ({_short(error)}); replace it by an intact copy"
    return f"is not HDF5 (it begins with {start!r}); give a flat HDF5 file or a Minari folder"


def read_array(source: str, group: h5py.Group, key: str) -> np.ndarray:
    """One numeric array [n, ...] of `group`."""
    node = group[key]
    if not isinstance(node, h5py.Dataset):
        fail(
            source,
            key,
            "is a group of arrays (dict observations or actions?)",
            "not supported, only vectors are",
        )
    if node.dtype.kind not in "biuf" or node.ndim == 0:
        fail(source, key, f"holds {node.dtype} of shape {node.shape}", "it must be a numeric array")
    try:
        return node[()]
    except OSError as error:
        what = f"cannot be read, the file is damaged ({_short(error)})"
        fail(source, key, what, "replace it by an intact copy")


def _short(error: OSError) -> str:
    """HDF5's reason without its nested details."""
    return str(error).split("\n")[0][:120]


def _check_layout(source: str, file: h5py.File) -> None:
    """A clear word where the file is another known layout or lacks a key."""
    if "episode_0" in file:
        fail(
            source,
            "episode_0",
            "is the inside of a Minari dataset",
            "give the dataset's folder, the one that holds data/",
        )
    if "episode_terminals" in file:
        fail(
            source,
            "episode_terminals",
            "is d3rlpy's old layout, whose rewards are one step late",
            "convert it to D4RL's keys with each reward beside its own action",
        )
    for key in REQUIRED:
        if key not in file:
            fail(
                source,
                key,
                f"missing key (the file has {', '.join(sorted(file)) or 'none'})",
                f"needed are {', '.join(REQUIRED)}",
            )


def _limit(source: str, value: Any) -> int | None:
    """The attribute max_episode_steps as a positive int."""
    if value is None:
        return None
    number = np.asarray(value)
    if number.ndim == 0 and number.dtype.kind in "iuf" and number > 0 and number == int(number):
        return int(number)
    fail(source, "max_episode_steps", f"is {value!r}", "the attribute must be a positive integer")


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
        for key, array in _columns(transitions).items():
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


def _columns(transitions: TensorDict) -> dict[str, np.ndarray]:
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
    following = transitions["next", "observation"].numpy()[:-1]
    observations = transitions["observation"].numpy()[1:]
    inside = transitions["t"].numpy()[1:] != 0
    return int(((following != observations).any(axis=1) & inside).sum())
