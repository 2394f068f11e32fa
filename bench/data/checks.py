"""What a dataset holds and what is odd about it, as plain values for `bench.data.render`."""

from dataclasses import asdict
from typing import Any

import numpy as np

from bench.data.card import Card, cards
from bench.data.coverage import coverage
from bench.data.dataset import (
    Dataset,
    canonical_arrays,
    episode_lengths,
    episode_returns,
    episode_starts,
)
from bench.data.hashes import repeated_episodes, repeated_rows, row_hashes
from bench.data.raw import blocks

BINS = 20
NEAR_BOUND = 1e-3
MANY_DUPLICATES = 0.01  # share of rows; below it repeated rows are a note
ENDS = ("terminated", "truncated", "both", "neither")


def report(dataset: Dataset) -> dict[str, Any]:
    """Everything `bench data check` shows, as plain values that fit into JSON.

    `anomalies` lists what makes results doubtful, `notes` what is worth knowing. Actions are
    `saturated_percent` (entries within 1e-3 of a bound, in all and by dimension) or, discrete,
    `action_counts`. Works through the rows in blocks. The scores are None without a reference, and
    where the data's episodes are not an evaluation's (`behaviour`) unless somebody measured it.
    """
    hashes = row_hashes(dataset.transitions)
    returns, lengths = episode_returns(dataset.transitions), episode_lengths(dataset.transitions)
    within = returns_within(dataset)
    facts: dict[str, Any] = {
        "name": dataset.name,
        "env_id": dataset.recorded_env_id,
        "can_be_evaluated": dataset.env_id is not None,
        "family": dataset.family,
        "horizon": dataset.horizon,
        "fingerprint": dataset.fingerprint,
        "fingerprint_next": dataset.fingerprint_next,
        "reference": list(dataset.reference) if dataset.reference else None,
        "reference_source": dataset.reference_source,
        "unit": dataset.unit,
        "behaviour": asdict(dataset.behaviour) if dataset.behaviour else None,
        "normalized_behaviour_score": _score(dataset, dataset.behaviour_return),
        "return_within_horizon": float(within.mean()),
        "normalized_score_within_horizon": _score(
            dataset, None if dataset.behaviour else float(within.mean())
        ),
        "stats": dict(dataset.stats),
        "return_histogram": _histogram(returns),
        "length_histogram": _histogram(lengths),
        "ends": _ends(dataset, returns, lengths),
        "rewards": _rewards(dataset),
        "actions": _actions(dataset),
        "observations": _observations(dataset),
        "duplicates": repeated_rows(hashes),
        "duplicate_episodes": repeated_episodes(dataset.transitions, hashes),
        "card": _card(cards().get(dataset.name)),
    }
    return facts | {"anomalies": _anomalies(dataset, facts), "notes": _notes(dataset, facts)}


def _score(dataset: Dataset, mean_return: float | None) -> float | None:
    return None if mean_return is None else dataset.normalize(mean_return)


def returns_within(dataset: Dataset) -> np.ndarray:
    """Return of each episode up to the horizon, which is what evaluations measure, [episodes]."""
    rewards = dataset.transitions["next", "reward"].numpy()[:, 0].astype(np.float64)
    if dataset.horizon is not None:
        rewards[dataset.transitions["t"].numpy() >= dataset.horizon] = 0
    return np.add.reduceat(rewards, episode_starts(dataset.transitions))


def _histogram(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=BINS)
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}


def _ends(dataset: Dataset, returns: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Episodes by the flags of their last row: how many, mean length and mean return."""
    arrays = canonical_arrays(dataset.transitions)
    last = np.cumsum(lengths) - 1
    terminated, truncated = arrays["terminated"][last], arrays["truncated"][last]
    chosen = (terminated & ~truncated, truncated & ~terminated, terminated & truncated,
              ~terminated & ~truncated)  # fmt: skip
    return {
        kind: {
            "episodes": int(found.sum()),
            "length_mean": float(lengths[found].mean()) if found.any() else None,
            "return_mean": float(returns[found].mean()) if found.any() else None,
        }
        for kind, found in zip(ENDS, chosen, strict=True)
    }


def _rewards(dataset: Dataset) -> dict[str, float]:
    rewards = dataset.transitions["next", "reward"].numpy()[:, 0]
    values = {"low": rewards.min(), "high": rewards.max()}
    values |= {"mean": rewards.mean(dtype=np.float64), "sd": rewards.std(dtype=np.float64)}
    return {key: float(value) for key, value in values.items()} | {
        "zero_percent": 100 * float((rewards == 0).mean())
    }


def _actions(dataset: Dataset) -> dict[str, Any]:
    actions = dataset.transitions["action"].numpy()
    if dataset.n_actions is not None:
        return {"action_counts": np.bincount(actions, minlength=dataset.n_actions).tolist()}
    assert dataset.action_low is not None and dataset.action_high is not None
    low, high = dataset.action_low.numpy(), dataset.action_high.numpy()
    saturated = np.zeros(actions.shape[1], dtype=np.int64)
    for rows in blocks(len(actions)):
        near = (actions[rows] <= low + NEAR_BOUND) | (actions[rows] >= high - NEAR_BOUND)
        saturated += near.sum(axis=0)
    filled = coverage(actions)
    return {
        "low": low.tolist(),
        "high": high.tolist(),
        "saturated_percent": 100 * float(saturated.sum() / actions.size),
        "saturated_percent_by_dimension": (100 * saturated / len(actions)).tolist(),
        "constant_dimensions": filled["constant"],
        "coverage": filled,
    }


def _observations(dataset: Dataset) -> dict[str, Any]:
    """Shape and type; of vectors also their coverage."""
    observations = dataset.transitions["observation"].numpy()
    kind = {"shape": list(observations.shape[1:]), "dtype": str(observations.dtype)}
    return kind | ({"coverage": coverage(observations)} if observations.ndim == 2 else {})


def _card(card: Card | None) -> dict[str, Any] | None:
    if card is None:
        return None
    return {
        "source": card.url or card.minari or (str(card.path) if card.path else list(card.combine)),
        "licence": card.licence,
        "licence_source": card.licence_source,
        "recorded_in": card.recorded_in,
        "not_evaluated": card.not_evaluated,
        "not_comparable_with": list(card.not_comparable_with),
        "preprocessing": card.preprocessing,
        "cautions": list(card.cautions),
    }


def _anomalies(dataset: Dataset, facts: dict[str, Any]) -> list[str]:
    stats, found = dataset.stats, []
    for key, text in {
        "clipped_entries": "action entries lie outside the bounds and were clipped",
        "assumed_ends": "episode ends were guessed from the step limit: the file has no timeouts",
        "both_flags": "transitions are both terminated and truncated",
        "flags_inside": "transitions are flagged as an end but their episode goes on",
        "unflagged_ends": "episodes stop without terminated or truncated",
        "broken_chain": "next observations differ from the observation that follows (missing "
        "episode ends, or reordered rows)",
    }.items():
        if stats[key]:
            found.append(f"{stats[key]:,} {text}")
    longer = _longer_than_horizon(dataset)
    if longer:
        found.append(f"{longer:,} episodes are longer than the horizon of {dataset.horizon}")
    if facts["duplicates"] > MANY_DUPLICATES * stats["transitions"]:
        found.append(f"{facts['duplicates']:,} transitions repeat an earlier one")
    if facts["duplicate_episodes"]:
        found.append(f"{facts['duplicate_episodes']:,} episodes repeat an earlier one")
    if stats["return_min"] == stats["return_max"] == 0:
        found.append("every episode's return is 0")
    if constant := facts["actions"].get("constant_dimensions"):
        found.append(f"action dimensions {constant} never change")
    return found + _differences(dataset)


def _differences(dataset: Dataset) -> list[str]:
    """Counts that are not the card's."""
    card = cards().get(dataset.name)
    published = {key: getattr(card, key, None) for key in ("transitions", "episodes")}
    return [
        f"{dataset.stats[key]:,} {key} where the card says {expected:,}"
        for key, expected in published.items()
        if expected not in (None, dataset.stats[key])
    ]


def _longer_than_horizon(dataset: Dataset) -> int:
    if dataset.horizon is None:
        return 0
    return int((episode_lengths(dataset.transitions) > dataset.horizon).sum())


def _notes(dataset: Dataset, facts: dict[str, Any]) -> list[str]:
    stats, found, duplicates = dataset.stats, [], facts["duplicates"]
    if stats["converted_arrays"]:
        found.append(
            f"{stats['converted_arrays']} arrays ({stats['converted_entries']:,} entries)"
            " were converted to float32"
        )
    if stats["unfinished_tail"]:
        found.append("the last episode is unfinished")
    if stats["unknown_next"]:
        found.append(f"{stats['unknown_next']:,} next observations are unknown (not bootstrapped)")
    if stats["copied_at_terminal"]:
        found.append(
            f"{stats['copied_at_terminal']:,} terminal next observations are unknown; a "
            "copy of the observation stands in"
        )
    if 0 < duplicates <= MANY_DUPLICATES * stats["transitions"]:
        found.append(f"{duplicates:,} transitions repeat an earlier one")
    if constant := facts["observations"].get("coverage", {}).get("constant"):
        found.append(f"observation dimensions {constant} never change")
    if not stats["terminated"]:
        found.append("no episode terminates")
    if dataset.env_id is None:
        found.append("the environment cannot be made here: no evaluation")
    if dataset.reference is None:
        found.append("no reference scores: results are raw returns")
    cautions = [f"caution: {text}" for text in (facts["card"] or {}).get("cautions", [])]
    return found + _own_make(dataset) + cautions


def _own_make(dataset: Dataset) -> list[str]:
    card = cards().get(dataset.name)
    made = card.recipe["make"].get("fingerprint") if card and card.made else None
    same = made in (None, dataset.fingerprint)
    return [] if same else ["an own make, not bit-equal to the set that the card describes"]
