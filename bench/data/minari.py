"""Minari datasets (HDF5 data format): a folder with data/metadata.json and data/main_data.hdf5.

Reading goes to the files themselves: it needs no Minari, skips the infos, and can name the episode
and key of a fault.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.data.card import data_root
from bench.data.flat import array_names, open_hdf5, read_array, readable
from bench.data.parts import Keys, join, ordered, refuse
from bench.data.raw import ActionSpec, Raw, fail, scratch, stated_env, stated_limit, unread, warn
from bench.envs import with_options
from bench.errors import DataError

KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+", re.ASCII)
UNKNOWN = "bench_unknown_final_observations"  # our metadata: episodes whose last one is a copy


def minari_root() -> Path:
    """Where local Minari datasets lie: MINARI_DATASETS_PATH, else datasets/cache/minari."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or data_root() / "cache" / "minari")


def local_sets() -> dict[str, Path]:
    """Id -> folder of every Minari dataset under `minari_root()`."""
    root = minari_root()
    found = sorted(path.parents[1] for path in root.glob("**/data/metadata.json"))
    names = {folder.relative_to(root).as_posix(): folder for folder in found}
    return {name: names[name] for name in names if "/." not in f"/{name}"}  # not what is unfinished


def data_folder(path: Path) -> Path | None:
    """The folder with metadata.json for a dataset's folder (or itself), None if it is none."""
    return next((p for p in (path / "data", path) if (p / "metadata.json").is_file()), None)


def read_metadata(path: Path) -> dict[str, Any]:
    """metadata.json of a dataset folder."""
    folder = data_folder(path)
    if folder is None:
        raise DataError(f"{path}: no Minari dataset (no data/metadata.json); check the path")
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/metadata.json: not readable ({error}); restore it") from error
    if not isinstance(metadata, dict):
        raise DataError(f"{folder}/metadata.json: is no JSON object; restore it")
    return metadata


def read_minari(path: Path, keys: Keys = None, *, bulk: bool = True) -> Raw:
    """The columns of a Minari dataset, its episodes in order; `keys` chooses parts of observations
    that are dictionaries. Without `bulk` observations and actions are not read: `unread` arrays
    stand for them.

    Raises `DataError` for damage and for what is not supported: tuples, texts, other data formats
    than HDF5 (`check_format`).
    """
    metadata, folder = read_metadata(path), data_folder(path)
    assert folder is not None
    source = str(folder / "main_data.hdf5")
    check_format(source, metadata)
    env_id, limit = _environment(source, metadata)
    with open_hdf5(Path(source)) as file, readable(source):
        names = _episode_names(source, file)
        columns = _Columns(source, np.array([_steps(file[name]) for name in names]))
        for name in names:
            columns.add(_episode(source, file, name, keys, bulk))
    held = columns.held
    _check_totals(source, metadata, columns.lengths)
    nothing = unread((len(held["rewards"]),), np.float32)
    return Raw(
        source=source,
        observations=held.get("observations", nothing),
        actions=held.get("actions", nothing),
        rewards=held["rewards"],
        terminated=held["terminations"],
        truncated=held["truncations"],
        lengths=columns.lengths,
        final_observations=held.get("final_observations"),
        valid_next=_valid_next(source, metadata, columns.lengths),
        env_id=env_id,
        max_episode_steps=limit,
        actions_spec=_action_spec(metadata),
    )


def check_format(source: str, metadata: dict[str, Any]) -> None:
    """`DataError` for sets that are not stored as HDF5, which alone is read."""
    if metadata.get("data_format", "hdf5") != "hdf5":
        what = f"is {metadata['data_format']!r}, and only 'hdf5' can be read"
        mend = "write its episodes anew where Minari is: minari.create_dataset_from_buffers"
        fail(source, "data_format", what, mend)


def _episode_names(source: str, file: h5py.File) -> list[str]:
    """episode_0, episode_1, ... in the order of their numbers."""
    numbers = sorted(int(k[8:]) for k in file if k.startswith("episode_") and k[8:].isdigit())
    if not numbers:
        fail(source, "episode_0", "the file holds no episodes", "it needs at least one")
    missing = sorted(set(range(numbers[-1])) - set(numbers))
    if missing:
        fail(source, f"episode_{missing[0]}", "is missing", "replace the folder by an intact copy")
    return [f"episode_{number}" for number in numbers]


def _check_totals(source: str, metadata: dict[str, Any], lengths: np.ndarray) -> None:
    """The file holds what its metadata counts, where they count it."""
    found = {"total_episodes": len(lengths), "total_steps": int(np.sum(lengths))}
    for key, number in found.items():
        said = metadata.get(key, number)
        if said != number:
            mend = "replace the folder by an intact copy"
            fail(source, key, f"is {said} and the file holds {number}", mend)


def _episode(
    source: str, file: h5py.File, name: str, keys: Keys, bulk: bool
) -> dict[str, np.ndarray]:
    """The arrays of one episode of T steps: observations [T + 1, ...], the others [T, ...]."""
    group = file[name]
    if not isinstance(group, h5py.Group):
        fail(source, name, "is no group of arrays", "replace the file by an intact copy")
    for key in KEYS:
        if key not in group:
            fail(source, f"{name}/{key}", "missing key", f"an episode needs {', '.join(KEYS)}")
    arrays = {key: read_array(source, group, key) for key in KEYS[1 if bulk else 2 :]}
    if bulk:
        arrays["observations"] = _observations(source, group, keys)
    steps = len(arrays["rewards"])
    for key, array in arrays.items():
        expected = steps + (key == "observations")
        if len(array) != expected or steps == 0:
            fail(
                source,
                f"{name}/{key}",
                f"has {len(array)} rows for {steps} steps",
                f"it needs {expected}, at least 1",
            )
    return arrays


def _observations(source: str, group: h5py.Group, keys: Keys) -> np.ndarray:
    """One array, or the parts of a dictionary side by side."""
    held = group["observations"]
    if not isinstance(held, h5py.Group):
        refuse(source, "observations", keys)
        return read_array(source, group, "observations")
    where = f"{group.name.lstrip('/')}/observations"
    chosen = ordered(source, where, array_names(held), keys)
    return join(source, where, {name: read_array(source, held, name) for name in chosen})


def _steps(group: Any) -> int:
    """Of an episode; 0 for what `_episode` refuses."""
    rewards = group.get("rewards") if isinstance(group, h5py.Group) else None
    return len(rewards) if isinstance(rewards, h5py.Dataset) and rewards.ndim else 0


class _Columns:
    """Episodes one after the other: no more than one is in memory besides `held`, whose arrays
    are mapped from files where they are large."""

    def __init__(self, source: str, lengths: np.ndarray) -> None:
        self.source, self.lengths = source, lengths
        self.held: dict[str, np.ndarray] = {}
        self._row = self._episode = 0

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """The next episode."""
        for key, part in arrays.items():
            rows = part[:-1] if key == "observations" else part
            self._place(key, self._row, rows, int(self.lengths.sum()))
        if "observations" in arrays:
            last = arrays["observations"][-1:]
            self._place("final_observations", self._episode, last, len(self.lengths))
        self._row += len(arrays["rewards"])
        self._episode += 1

    def _place(self, key: str, start: int, part: np.ndarray, rows: int) -> None:
        if key not in self.held:
            self.held[key] = scratch((rows, *part.shape[1:]), part.dtype)
        out = self.held[key]
        kinds = {(array.shape[1:], array.dtype.str) for array in (out, part)}
        if len(kinds) > 1:
            what = f"episodes have different shapes or types {sorted(kinds)}"
            fail(self.source, key, what, "only arrays of one shape are supported")
        out[start : start + len(part)] = part


def _nested(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    """A space or specification, which Minari keeps as JSON inside the JSON; empty if absent."""
    try:
        value = json.loads(metadata.get(key) or "{}")
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"metadata.json: {key}: is no JSON object; restore the file")
    return value


def _action_spec(metadata: dict[str, Any]) -> ActionSpec | None:
    """The recorded action space, for environments that cannot be made here."""
    space = _nested(metadata, "action_space")
    try:
        if space.get("type") == "Discrete" and space.get("start", 0) == 0:
            return ActionSpec(n=int(space["n"]))
        if space.get("type") == "Box" and len(space["shape"]) == 1:
            low, high = (np.array(space[key], dtype=np.float32) for key in ("low", "high"))
            if low.shape == high.shape == tuple(space["shape"]):
                return ActionSpec(low=low, high=high)
            raise ValueError(f"bounds of shape {low.shape} and {high.shape}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"metadata.json: action_space: is no space of gymnasium ({error!r})"
        raise DataError(f"{what}; restore the file") from error
    return None


def _environment(source: str, metadata: dict[str, Any]) -> tuple[str | None, int | None]:
    """Environment id and step limit; options of the environment that no id of ours stands for are
    named in a warning."""
    spec = _nested(metadata, "eval_env_spec") or _nested(metadata, "env_spec")
    given = spec.get("kwargs") or {}
    if not isinstance(given, dict):
        fail(source, "env_spec", f"has the options {given!r}", "restore metadata.json")
    options = {k: v for k, v in given.items() if k != "render_mode"}
    limit = spec.get("max_episode_steps") or metadata.get("bench_max_episode_steps")
    ours = with_options(str(spec.get("id")), options, limit)
    if options and not ours:
        warn(
            source,
            f"{spec.get('id')} was recorded with the options {options}; evaluation uses "
            "the environment's defaults",
        )
    env_id = ours or spec.get("id") or metadata.get("bench_env_id")
    return stated_env(source, env_id), stated_limit(source, limit)


def _valid_next(source: str, metadata: dict[str, Any], lengths: np.ndarray) -> np.ndarray:
    """False at the last rows of the episodes that our metadata lists as unknown."""
    named = metadata.get(UNKNOWN, [])
    if not isinstance(named, list) or not all(type(number) is int for number in named):
        fail(source, UNKNOWN, "is no list of episode numbers", "export it again")
    unknown = np.array(named, dtype=np.int64)
    if unknown.size and (unknown.min() < 0 or unknown.max() >= len(lengths)):
        fail(source, UNKNOWN, f"names episodes beyond {len(lengths) - 1}", "export it again")
    valid = np.ones(lengths.sum(), dtype=bool)
    valid[(np.cumsum(lengths) - 1)[unknown]] = False
    return valid
