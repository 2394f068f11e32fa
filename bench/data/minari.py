"""Minari datasets (HDF5 data format): a folder with data/metadata.json and data/main_data.hdf5.

Reading goes to the files themselves: it needs no Minari, skips the infos, and can name the episode
and key of a fault.
"""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.data.card import data_root
from bench.data.flat import open_hdf5, read_array
from bench.data.raw import ActionSpec, Raw, fail, warn
from bench.errors import DataError

KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
UNKNOWN = "bench_unknown_final_observations"  # our metadata: episodes whose last one is a copy


def minari_root() -> Path:
    """Where local Minari datasets lie: MINARI_DATASETS_PATH, else datasets/cache/minari."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or data_root() / "cache" / "minari")


def local_sets() -> dict[str, Path]:
    """Id -> folder of every Minari dataset under `minari_root()`."""
    root = minari_root()
    found = sorted(path.parents[1] for path in root.glob("**/data/metadata.json"))
    return {folder.relative_to(root).as_posix(): folder for folder in found}


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


def read_minari(path: Path) -> Raw:
    """The columns of a Minari dataset, its episodes in order.

    Raises `DataError` for damage and for what is not supported: dict, tuple or image observations,
    other data formats than HDF5.
    """
    metadata, folder = read_metadata(path), data_folder(path)
    assert folder is not None
    source = str(folder / "main_data.hdf5")
    if metadata.get("data_format", "hdf5") != "hdf5":
        fail(source, "data_format", f"{metadata['data_format']} is not supported", "only hdf5 is")
    _check_observation_space(source, metadata)
    env_id, limit = _environment(source, metadata)
    with open_hdf5(Path(source)) as file:
        episodes = [_episode(source, file, name) for name in _episode_names(source, file)]
    columns = {k: _join(source, k, [e[k] for e in episodes]) for k in ("actions", *KEYS[2:])}
    lengths = np.array([len(e["rewards"]) for e in episodes])
    return Raw(
        source=source,
        observations=_join(source, "observations", [e["observations"][:-1] for e in episodes]),
        actions=columns["actions"],
        rewards=columns["rewards"],
        terminated=columns["terminations"],
        truncated=columns["truncations"],
        lengths=lengths,
        final_observations=_join(
            source, "observations", [e["observations"][-1:] for e in episodes]
        ),
        valid_next=_valid_next(source, metadata, lengths),
        env_id=env_id,
        max_episode_steps=limit,
        actions_spec=_action_spec(metadata),
    )


def _episode_names(source: str, file: h5py.File) -> list[str]:
    """episode_0, episode_1, ... in the order of their numbers."""
    numbers = sorted(int(k[8:]) for k in file if k.startswith("episode_") and k[8:].isdigit())
    if not numbers:
        fail(source, "episode_0", "the file holds no episodes", "it needs at least one")
    return [f"episode_{number}" for number in numbers]


def _episode(source: str, file: h5py.File, name: str) -> dict[str, np.ndarray]:
    """The arrays of one episode of T steps: observations [T + 1, ...], the others [T, ...]."""
    group = file[name]
    for key in KEYS:
        if key not in group:
            fail(source, f"{name}/{key}", "missing key", f"an episode needs {', '.join(KEYS)}")
    arrays = {key: read_array(source, group, key) for key in KEYS}
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


def _join(source: str, key: str, parts: list[np.ndarray]) -> np.ndarray:
    widths = {part.shape[1:] for part in parts}
    if len(widths) > 1:
        fail(
            source,
            key,
            f"episodes have different shapes {sorted(widths)}",
            "only vectors of one width are supported",
        )
    return np.concatenate(parts)


def _check_observation_space(source: str, metadata: dict[str, Any]) -> None:
    space = _nested(metadata, "observation_space")
    kind, shape = space.get("type", "Box"), space.get("shape", [1])
    if kind not in ("Box", "Discrete") or len(shape) > 1:
        fail(
            source,
            "observations",
            f"{kind} observations of shape {shape} are not supported",
            "only vectors are",
        )


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
    if space.get("type") == "Discrete" and space.get("start", 0) == 0:
        return ActionSpec(n=int(space["n"]))
    if space.get("type") == "Box" and len(space["shape"]) == 1:
        low, high = (np.array(space[key], dtype=np.float32) for key in ("low", "high"))
        return ActionSpec(low=low, high=high)
    return None


def _environment(source: str, metadata: dict[str, Any]) -> tuple[str | None, int | None]:
    """Environment id and step limit; options of the environment are named in a warning."""
    spec = _nested(metadata, "eval_env_spec") or _nested(metadata, "env_spec")
    options = {k: v for k, v in (spec.get("kwargs") or {}).items() if k != "render_mode"}
    if options:
        warn(
            source,
            f"{spec.get('id')} was recorded with the options {options}; evaluation uses "
            "the environment's defaults",
        )
    env_id = spec.get("id") or metadata.get("bench_env_id")
    limit = spec.get("max_episode_steps") or metadata.get("bench_max_episode_steps")
    return env_id, limit


def _valid_next(source: str, metadata: dict[str, Any], lengths: np.ndarray) -> np.ndarray:
    """False at the last rows of the episodes that our metadata lists as unknown."""
    unknown = np.array(metadata.get(UNKNOWN, []), dtype=np.int64)
    if unknown.size and (unknown.min() < 0 or unknown.max() >= len(lengths)):
        fail(source, UNKNOWN, f"names episodes beyond {len(lengths) - 1}", "export it again")
    valid = np.ones(lengths.sum(), dtype=bool)
    valid[(np.cumsum(lengths) - 1)[unknown]] = False
    return valid
