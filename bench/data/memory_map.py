"""Folders of memory-mapped arrays as `TensorDict.memmap` writes them: meta.json beside one
`<key>.memmap` per array, nested TensorDicts as folders.

Read by ourselves: TensorDict's own reader unpickles what is no tensor. Needed are `observation`,
`action` and ("next", "reward"), ("next", "terminated"); the other entries of a `Dataset` where
they are. Episodes follow from `episode`, else from ("collector", "traj_ids"), else from the flags.
Our own folders hold bench.json with what a TensorDict has no place for.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data.parts import Keys, join, ordered, refuse
from bench.data.raw import Raw, allocate, column, fail, stated_env, stated_limit
from bench.errors import DataError
from bench.store.files import writing

if TYPE_CHECKING:
    from tensordict import TensorDict

FACTS = "bench.json"
REQUIRED = ("observation", "action", "next/reward", "next/terminated")
EPISODES = ("episode", "collector/traj_ids")
DTYPES = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}


def is_memory_map(path: Path) -> bool:
    return (path / "meta.json").is_file()


def read_memory_map(path: Path, keys: Keys = None) -> Raw:
    """The columns of a folder, mapped: nothing is read before it is used.

    Raises `DataError` for missing or damaged arrays and for what is no array.
    """
    found = _arrays(path, _meta(path), "")
    source = str(path)
    facts = _json(path / FACTS) if (path / FACTS).exists() else {}

    def optional(key: str) -> np.ndarray | None:
        return found[key]() if key in found else None

    for key in REQUIRED[1:]:
        if key not in found:
            known = ", ".join(sorted(found)) or "none"
            fail(source, key, f"missing entry (there are {known})", f"needed are {REQUIRED}")
    rewards = column(source, "next/reward", found["next/reward"]())
    return Raw(
        source=source,
        observations=_observations(source, "observation", found, keys),
        actions=found["action"](),
        rewards=rewards,
        terminated=found["next/terminated"](),
        truncated=optional("next/truncated"),
        lengths=_lengths(source, found),
        next_observations=_observations(source, "next/observation", found, keys),
        valid_next=optional("valid_next"),
        env_id=stated_env(source, facts.get("env_id")),
        max_episode_steps=stated_limit(source, facts.get("max_episode_steps")),
        attributes={key: value for key, value in facts.items() if isinstance(value, str)},
    )


def write_memory_map(
    path: Path,
    transitions: TensorDict,
    *,
    env_id: str | None,
    max_episode_steps: int | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Write transitions (see `Dataset`) as a folder that `TensorDict.load_memmap` reads too.
    `attributes` records where the data comes from.

    Raises `DataError` if there is something at `path` already, `RunError` where the disk refuses.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; delete it or choose another name")
    with writing(path, transitions.bytes()):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".write-") as scratch:
            part = Path(scratch) / "set"
            _fill(part, transitions)
            facts = {**(attributes or {}), "env_id": env_id, "max_episode_steps": max_episode_steps}
            (part / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            shutil.move(part, path)


def _fill(folder: Path, transitions: TensorDict) -> None:
    """Files that have their blocks before anything is written to their mapped pages: where the disk
    is full that would kill the process."""
    try:
        mapped = transitions.memmap_like(str(folder))
    except RuntimeError as error:  # torch's word for what the system refuses
        raise OSError(errno.EIO, str(error).split("\n")[0]) from error
    for path in folder.rglob("*.memmap"):
        with open(path, "r+b") as file:
            allocate(file, path.stat().st_size)
    mapped.update_(transitions)


def _observations(
    source: str, key: str, found: dict[str, Callable[[], np.ndarray]], keys: Keys
) -> Any:
    """One array, or the parts of a dictionary side by side; None for absent next observations."""
    if key in found:
        refuse(source, key, keys)
        return found[key]()
    parts = [name[len(key) + 1 :] for name in found if name.startswith(f"{key}/")]
    if not parts and key == "observation":
        known = ", ".join(sorted(found)) or "none"
        fail(source, key, f"missing entry (there are {known})", f"needed are {REQUIRED}")
    if not parts:
        return None
    chosen = ordered(source, key, parts, keys)
    return join(source, key, {name: found[f"{key}/{name}"]() for name in chosen})


def _lengths(source: str, found: dict[str, Callable[[], np.ndarray]]) -> np.ndarray | None:
    """Lengths of the runs of equal episode numbers, where there are such numbers."""
    key = next((key for key in EPISODES if key in found), None)
    if key is None:
        return None
    numbers = column(source, key, found[key]())
    if not len(numbers):
        return None
    starts = np.append(0, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1)
    return np.diff(np.append(starts, len(numbers)))


def _arrays(folder: Path, meta: dict[str, Any], prefix: str) -> dict[str, Callable[[], np.ndarray]]:
    """How to map each array, by path."""
    found: dict[str, Callable[[], np.ndarray]] = {}
    for key, facts in meta.items():
        if (folder / key / "meta.json").is_file() and _plain(key):
            found |= _arrays(folder / key, _meta(folder / key), f"{prefix}{key}/")
        elif isinstance(facts, dict) and "dtype" in facts:
            found[f"{prefix}{key}"] = lambda k=key, f=facts: _mapped(folder, k, f)  # type: ignore[misc]
    return found


def _plain(key: str) -> bool:
    return "/" not in key and "\\" not in key and key not in (".", "..")


def _mapped(folder: Path, key: str, facts: dict[str, Any]) -> np.ndarray:
    """The array of one file, whose size must be what meta.json says."""
    source, path = str(folder), folder / f"{key}.memmap"
    dtype = str(facts.get("dtype")).removeprefix("torch.")
    shape = facts.get("shape")
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not (_plain(key) and sizes and shape and dtype in DTYPES):
        fail(source, key, f"is {facts} in meta.json", "only arrays with a first axis can be read")
    expected = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    held = path.stat().st_size if path.is_file() else -1
    if held != expected:
        what = f"{path.name} has {held} bytes where meta.json asks for {expected}"
        fail(source, key, what, "replace the folder by an intact copy")
    if expected == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, np.dtype(dtype), "c", shape=tuple(shape))


def _meta(folder: Path) -> dict[str, Any]:
    return _json(folder / "meta.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable ({error}); restore the folder") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: is no JSON object; restore the folder")
    return value
