"""What a loader ends in: one `Dataset`, its statistics and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.data.card import Behaviour

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Transitions in memory plus everything that training and evaluation need to know of them.

    `transitions` has batch size [n], lies on the CPU and holds `observation` float32 [n, d],
    `action` float32 [n, a] (int64 [n] when discrete), ("next", "observation") float32 [n, d],
    ("next", "reward") float32 [n, 1], ("next", "done" | "terminated" | "truncated") bool [n, 1],
    `episode` int64 [n], `t` int64 [n] (0 at an episode's start) and `valid_next` bool [n], which is
    False where the next observation is unknown; there it holds a copy of the observation.

    `env_id` is the environment for evaluation, None where it cannot be made on this machine;
    `recorded_env_id` keeps the name. `horizon` None is the environment's own step limit.
    `reference` holds the raw returns (random, expert), `action_low` and `action_high` are [a].
    `behaviour` is there where the data's episodes are not such as evaluations have.
    """

    name: str
    transitions: TensorDict
    env_id: str | None
    horizon: int | None
    fingerprint: str
    fingerprint_next: str
    reference: tuple[float, float] | None
    reference_source: str | None
    discrete: bool
    action_low: Tensor | None
    action_high: Tensor | None
    n_actions: int | None
    family: str
    stats: dict[str, float]
    recorded_env_id: str | None = None
    behaviour: Behaviour | None = None

    @property
    def behaviour_return(self) -> float | None:
        """Mean raw return that the policy behind the data has in evaluations; None if unknown.

        That of the data's episodes, unless a card says that these are others (`behaviour`).
        """
        return self.stats["return_mean"] if self.behaviour is None else self.behaviour.mean_return

    def normalize(self, ret: float) -> float | None:
        """Score of a raw return: 0 for the random policy, 100 for the expert; None without both."""
        return normalized(ret, self.reference)

    @property
    def unit(self) -> str:
        """Unit of the scores that are reported for this dataset: "normalized" or "return"."""
        return "return" if self.reference is None else "normalized"


def normalized(ret: float, reference: tuple[float, float] | None) -> float | None:
    """See `Dataset.normalize`; `reference` holds the raw returns (random, expert)."""
    if reference is None:
        return None
    random, expert = reference
    return 100.0 * (ret - random) / (expert - random)


def fingerprint(transitions: TensorDict) -> str:
    """sha256 (hex) of observations, actions, rewards, terminated, truncated and episode.

    Each array enters as its name, dtype and shape, then its little-endian bytes in C order.
    Next observations stay out: inside an episode they repeat the observations, and whether an
    episode's last one is known depends on the file format, not on the data. So the same data has
    one fingerprint whether it came from a flat file or from a Minari folder. `fingerprint_next`
    covers what is left out here.
    """
    return _digest(canonical_arrays(transitions))


def fingerprint_next(transitions: TensorDict) -> str:
    """sha256 (hex), made like `fingerprint`, of the next observations and of where they are known.

    A digest of its own, so that `fingerprint` goes on meaning what results have recorded. Where a
    next observation is unknown its stand-in, the observation, enters.
    """
    return _digest(
        {
            "next_observations": transitions["next", "observation"].numpy(),
            "valid_next": transitions["valid_next"].numpy(),
        }
    )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def canonical_arrays(transitions: TensorDict) -> dict[str, np.ndarray]:
    """The arrays that make up the data's identity, as numpy views; rewards and flags are [n]."""
    return {
        "observations": transitions["observation"].numpy(),
        "actions": transitions["action"].numpy(),
        "rewards": transitions["next", "reward"].numpy()[:, 0],
        "terminated": transitions["next", "terminated"].numpy()[:, 0],
        "truncated": transitions["next", "truncated"].numpy()[:, 0],
        "episode": transitions["episode"].numpy(),
    }


def episode_starts(transitions: TensorDict) -> np.ndarray:
    """Row of each episode's first transition, int64 [episodes]."""
    return np.flatnonzero(transitions["t"].numpy() == 0)


def episode_lengths(transitions: TensorDict) -> np.ndarray:
    """Number of transitions of each episode, int64 [episodes]."""
    return np.diff(np.append(episode_starts(transitions), transitions.shape[0]))


def episode_returns(transitions: TensorDict) -> np.ndarray:
    """Undiscounted return of each episode, summed in float64, [episodes]."""
    rewards = transitions["next", "reward"].numpy()[:, 0]
    return np.add.reduceat(rewards, episode_starts(transitions), dtype=np.float64)


def statistics(transitions: TensorDict, counts: Mapping[str, int]) -> dict[str, float]:
    """Plain numbers that describe the data, followed by what the loader counted on the way.

    Standard deviations are over the population (divided by n).
    """
    returns, lengths = episode_returns(transitions), episode_lengths(transitions)
    stats: dict[str, float] = {"transitions": int(lengths.sum()), "episodes": len(lengths)}
    stats |= _moments("return", returns) | _moments("length", lengths)
    return stats | _flag_counts(transitions, lengths) | {k: int(v) for k, v in counts.items()}


def _moments(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean, sd, min and max of `values` under `<name>_mean` and so on."""
    kinds = {"mean": values.mean(), "sd": values.std(), "min": values.min(), "max": values.max()}
    return {f"{name}_{kind}": float(value) for kind, value in kinds.items()}


def _flag_counts(transitions: TensorDict, lengths: np.ndarray) -> dict[str, float]:
    """How episodes end, and where their flags contradict their boundaries."""
    arrays = canonical_arrays(transitions)
    terminated, truncated = arrays["terminated"], arrays["truncated"]
    done, ends = terminated | truncated, np.cumsum(lengths) - 1
    return {
        "terminated": int(terminated.sum()),
        "truncated": int(truncated.sum()),
        "both_flags": int((terminated & truncated).sum()),
        "flags_inside": int(done.sum() - done[ends].sum()),
        "unflagged_ends": int((~done[ends[:-1]]).sum()),
        "unfinished_tail": int(not done[-1]),
        "unknown_next": int((~transitions["valid_next"].numpy()).sum()),
    }
