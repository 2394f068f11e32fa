"""Which rows and episodes repeat earlier ones, without holding more than one number per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.data.dataset import canonical_arrays, episode_starts
from bench.data.raw import blocks

if TYPE_CHECKING:
    from tensordict import TensorDict

_SEED = 0


def row_hashes(transitions: TensorDict) -> np.ndarray:
    """A 64-bit linear hash of each row's observation, action and reward, uint64 [n].

    Different rows share one with a probability of 2^-64 per pair: with ten million rows a false
    repetition has a chance of a few in a million.
    """
    arrays = canonical_arrays(transitions)
    parts = [arrays[key] for key in ("observations", "actions", "rewards")]
    hashes = np.zeros(len(parts[0]), dtype=np.uint64)
    widths = [_words(part[:1]).shape[1] for part in parts]
    factors = _factors(sum(widths))
    for rows in blocks(len(hashes)):
        words = np.concatenate([_words(part[rows]) for part in parts], axis=1)
        for position, factor in enumerate(factors):
            hashes[rows] += words[:, position] * factor
    return hashes


def _words(rows: np.ndarray) -> np.ndarray:
    """The rows' bytes as whole numbers below 2^32, uint64 [n, words]."""
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    kind = np.uint8 if flat.dtype.itemsize < 4 else np.uint32
    return flat.view(kind).astype(np.uint64)


def _factors(count: int) -> np.ndarray:
    """Odd random numbers."""
    numbers = np.random.default_rng(_SEED).bytes(8 * count)
    return np.frombuffer(numbers, dtype=np.uint64) | np.uint64(1)


def repeated_rows(hashes: np.ndarray) -> int:
    """How many rows repeat an earlier one."""
    return len(hashes) - len(np.unique(hashes))


def repeated_episodes(transitions: TensorDict, hashes: np.ndarray) -> int:
    """How many episodes hold the same rows in the same order as an earlier one."""
    starts = episode_starts(transitions)
    t = transitions["t"].numpy().astype(np.uint64)
    # a row's hash times an odd number that its place in the episode gives (a step of splitmix64)
    place = (t + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    place = (place ^ (place >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) | np.uint64(1)
    mixed = (hashes ^ (hashes >> np.uint64(31))) * place
    sums = np.add.reduceat(mixed, starts)
    lengths = np.diff(np.append(starts, len(hashes))).astype(np.uint64)
    return len(sums) - len(np.unique(np.stack([sums, lengths]), axis=1).T)
