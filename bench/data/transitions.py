"""From raw columns to transitions: episodes, next observations, clipped actions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data import envs
from bench.data.raw import (
    ActionSpec,
    Raw,
    clean_actions,
    clip_actions,
    count_broken,
    fail,
    flag_column,
    float_column,
    observation_array,
    scratch,
    warn,
)

if TYPE_CHECKING:
    from tensordict import TensorDict

COUNTS = (
    "converted_arrays",  # to float32
    "converted_entries",
    "clipped_entries",  # actions outside the bounds
    "assumed_ends",  # timeouts put in because the file has none
    "broken_chain",  # next observations that differ from the episode's following observation
    "copied_at_terminal",  # unknown next observations behind a terminal
)


@dataclass(frozen=True)
class Episodes:
    """Flags bool [n] and the episodes' lengths int64 [episodes]."""

    terminated: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray


def to_transitions(
    raw: Raw,
    info: envs.EnvInfo | None = None,
    *,
    limit: int | None = None,
    strict: bool = False,
) -> tuple[TensorDict, ActionSpec, Counter[str]]:
    """The TensorDict of a `Dataset`, its action space, and what was counted on the way.

    `limit` is the step limit that the data was recorded with, for files that neither record
    timeouts nor name it; without one it is the environment's.
    """
    _check_lengths(raw)
    counts = Counter(dict.fromkeys(COUNTS, 0))
    if raw.single_rows:
        what = f"{raw.single_rows} episodes of one observation hold no transition"
        warn(raw.source, f"{what} and were left out")
    observations = observation_array(raw.source, "observations", raw.observations, counts)
    _check_width(raw, info, observations.shape[1:])
    actions, spec = _actions(raw, info, counts, strict)
    rewards = float_column(raw.source, "rewards", raw.rewards, counts)
    episodes = _episodes(raw, limit or (info.limit if info else None), counts, strict)
    following, valid = _next_observations(raw, observations, episodes, counts)
    return _tensordict(observations, actions, rewards, episodes, following, valid), spec, counts


def lengths_and_returns(raw: Raw, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each episode, [episodes], from rewards and flags alone; `limit` as above."""
    _check_lengths(raw)
    counts: Counter[str] = Counter()
    rewards = float_column(raw.source, "rewards", raw.rewards, counts)
    lengths = _episodes(raw, limit, counts, strict=False).lengths
    return lengths, np.add.reduceat(rewards, np.cumsum(lengths) - lengths, dtype=np.float64)


def _check_lengths(raw: Raw) -> None:
    """Every column has one row per transition, and there is at least one."""
    n = len(raw.observations)
    if n == 0:
        fail(raw.source, "observations", "the file is empty", "it needs at least one transition")
    for key in ("actions", "rewards", "terminated", "truncated", "next_observations", "valid_next"):
        array = getattr(raw, key)
        if array is not None and len(array) != n:
            name = {"terminated": "terminals", "truncated": "timeouts"}.get(key, key)
            fail(
                raw.source,
                name,
                f"has {len(array)} rows where observations has {n}",
                "the file was cut or written wrongly, write it again",
            )


def _check_width(raw: Raw, info: envs.EnvInfo | None, shape: tuple[int, ...]) -> None:
    expected = info.observation_width if info else None
    if expected is not None and shape != (expected,):
        found = " x ".join(map(str, shape))
        what = f"{found} numbers per observation where {raw.env_id} has {expected}"
        fail(
            raw.source,
            "observations",
            what,
            "give the environment that recorded them with --env-id",
        )


def _actions(
    raw: Raw, info: envs.EnvInfo | None, counts: Counter[str], strict: bool
) -> tuple[np.ndarray, ActionSpec]:
    """Actions inside the bounds; what had to be clipped is one warning, or an error if strict."""
    spec = info.actions if info else raw.actions_spec or _published_bounds(raw)
    actions, spec = clean_actions(raw, spec, counts)
    if spec.n is not None:
        return actions, spec
    clipped, what = clip_actions(actions, spec, counts)
    if what and strict:
        fail(raw.source, "actions", what, "clip them in the file or leave out --strict")
    if what:
        warn(raw.source, f"actions: {what} and were clipped")
    return clipped, spec


def _published_bounds(raw: Raw) -> ActionSpec | None:
    """-1..1 for environments known to have it, so that a missing package changes no data."""
    if raw.env_id is None or envs.family(raw.env_id) not in envs.UNIT_BOUNDS:
        return None
    width = raw.actions.shape[1] if raw.actions.ndim > 1 else 1
    ones = np.ones(width, dtype=np.float32)
    return ActionSpec(low=-ones, high=ones)


def _episodes(raw: Raw, limit: int | None, counts: Counter[str], strict: bool) -> Episodes:
    terminated = flag_column(raw.source, "terminals", raw.terminated)
    if raw.truncated is None:
        truncated = _assumed_timeouts(raw, terminated, limit, counts, strict)
    else:
        truncated = flag_column(raw.source, "timeouts", raw.truncated)
    lengths = raw.lengths
    if lengths is None:
        lengths = _lengths(terminated | truncated)
    elif lengths.sum() != len(terminated) or lengths.min() < 1:
        fail(
            raw.source,
            "episode_lengths",
            f"add up to {lengths.sum()} of {len(terminated)} rows",
            "the file was cut or written wrongly, write it again",
        )
    return Episodes(terminated, truncated, lengths.astype(np.int64))


def _lengths(done: np.ndarray) -> np.ndarray:
    """Episodes end where `done` is set; rows after the last end are an unfinished episode."""
    ends = np.flatnonzero(done)
    if not done[-1]:
        ends = np.append(ends, len(done) - 1)
    return np.diff(ends, prepend=-1)


def _assumed_timeouts(
    raw: Raw,
    terminated: np.ndarray,
    limit: int | None,
    counts: Counter[str],
    strict: bool,
) -> np.ndarray:
    """Timeouts every `limit` steps after a terminal, for files that do not record them."""
    limit = raw.max_episode_steps or limit
    truncated = np.zeros_like(terminated)
    if limit is None:
        what = "is missing and no step limit is known, so only terminals end an episode"
    else:
        lengths = _lengths(terminated)
        t = np.arange(len(terminated)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        truncated = ((t + 1) % limit == 0) & ~terminated
        counts["assumed_ends"] += int(truncated.sum())
        what = f"is missing, so {counts['assumed_ends']} episodes were ended after {limit} steps"
    if strict:
        fail(raw.source, "timeouts", what, "add the key or leave out --strict")
    warn(raw.source, f"timeouts: {what}")
    return truncated


def _next_observations(
    raw: Raw, observations: np.ndarray, episodes: Episodes, counts: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Next observations [n, d] and where they are known, bool [n]."""
    ends = np.cumsum(episodes.lengths) - 1
    if raw.next_observations is not None:
        key = "next_observations"
        following = observation_array(raw.source, key, raw.next_observations, counts)
        _same_kind(raw, key, following, observations)
        inside = np.ones(len(observations) - 1, dtype=bool)
        inside[ends[:-1]] = False
        counts["broken_chain"] = count_broken(observations, following, inside)
        return following, _valid(raw, len(observations))
    following = scratch(observations.shape, observations.dtype)
    following[:-1] = observations[1:]
    if raw.final_observations is not None:
        following[ends] = _finals(raw, observations, len(ends), counts)
        return following, _valid(raw, len(observations))
    following[ends] = observations[ends]
    valid = np.ones(len(observations), dtype=bool)
    valid[ends] = episodes.terminated[ends]  # never bootstrapped there, so nothing is missing
    counts["copied_at_terminal"] = int(episodes.terminated[ends].sum())
    return following, valid


def _finals(raw: Raw, observations: np.ndarray, episodes: int, counts: Counter[str]) -> np.ndarray:
    assert raw.final_observations is not None
    finals = observation_array(raw.source, "final_observations", raw.final_observations, counts)
    _same_kind(raw, "final_observations", finals, observations)
    if len(finals) != episodes:
        fail(
            raw.source,
            "final_observations",
            f"has {len(finals)} rows for {episodes} episodes",
            "it needs one per episode, the unfinished last one included",
        )
    return finals


def _same_kind(raw: Raw, key: str, array: np.ndarray, observations: np.ndarray) -> None:
    kinds = [f"{a.dtype} of shape {a.shape[1:]} per row" for a in (array, observations)]
    if kinds[0] != kinds[1]:
        fail(raw.source, key, f"is {kinds[0]}, observations {kinds[1]}", "write the file again")


def _valid(raw: Raw, n: int) -> np.ndarray:
    if raw.valid_next is None:
        return np.ones(n, dtype=bool)
    return flag_column(raw.source, "valid_next", raw.valid_next)


def _tensordict(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    episodes: Episodes,
    following: np.ndarray,
    valid: np.ndarray,
) -> TensorDict:
    import torch
    from tensordict import TensorDict

    n, lengths = len(observations), episodes.lengths
    starts = np.cumsum(lengths) - lengths
    ending = {"terminated": episodes.terminated, "truncated": episodes.truncated}
    ending["done"] = episodes.terminated | episodes.truncated
    columns: dict[str, Any] = {k: torch.from_numpy(v)[:, None] for k, v in ending.items()}
    columns["reward"] = torch.from_numpy(rewards)[:, None]
    columns["observation"] = torch.from_numpy(following)
    source = {
        "observation": torch.from_numpy(observations),
        "action": torch.from_numpy(actions),
        "next": TensorDict(columns, batch_size=[n]),
        "episode": torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        "t": torch.from_numpy(np.arange(n) - np.repeat(starts, lengths)),
        "valid_next": torch.from_numpy(valid),
    }
    return TensorDict(source, batch_size=[n])
