"""What a dataset holds and what is odd about it: `report` for programs, `render` for people."""

from typing import Any

import numpy as np

from bench.data.dataset import Dataset, canonical_arrays, episode_lengths, episode_returns

BINS = 20
NEAR_BOUND = 1e-3
BARS = " ▁▂▃▄▅▆▇█"
MANY_DUPLICATES = 0.01  # share of rows; below it repeated rows are a note


def report(dataset: Dataset) -> dict[str, Any]:
    """Everything `bench data check` shows, as plain values that fit into JSON.

    `anomalies` lists what makes results doubtful, `notes` what is worth knowing. Actions are
    `saturated_percent` (entries within 1e-3 of a bound) or, discrete, `action_counts`.
    """
    duplicates = _duplicates(dataset)
    returns, lengths = episode_returns(dataset.transitions), episode_lengths(dataset.transitions)
    mean = float(returns.mean())
    return {
        "name": dataset.name,
        "env_id": dataset.recorded_env_id,
        "can_be_evaluated": dataset.env_id is not None,
        "family": dataset.family,
        "horizon": dataset.horizon,
        "fingerprint": dataset.fingerprint,
        "reference": list(dataset.reference) if dataset.reference else None,
        "reference_source": dataset.reference_source,
        "unit": dataset.unit,
        "normalized_behaviour_score": dataset.normalize(mean),
        "stats": dict(dataset.stats),
        "return_histogram": _histogram(returns),
        "length_histogram": _histogram(lengths),
        "actions": _actions(dataset),
        "duplicates": duplicates,
        "anomalies": _anomalies(dataset, duplicates),
        "notes": _notes(dataset, duplicates),
    }


def _histogram(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=BINS)
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}


def _actions(dataset: Dataset) -> dict[str, Any]:
    actions = dataset.transitions["action"].numpy()
    if dataset.n_actions is not None:
        return {"action_counts": np.bincount(actions, minlength=dataset.n_actions).tolist()}
    assert dataset.action_low is not None and dataset.action_high is not None
    low, high = dataset.action_low.numpy(), dataset.action_high.numpy()
    saturated = (actions <= low + NEAR_BOUND) | (actions >= high - NEAR_BOUND)
    return {
        "low": low.tolist(),
        "high": high.tolist(),
        "saturated_percent": 100 * float(saturated.mean()),
        "constant_dimensions": np.flatnonzero(np.ptp(actions, axis=0) == 0).tolist(),
    }


def _duplicates(dataset: Dataset) -> int:
    """Rows whose observation, action and reward repeat an earlier row's.

    Rows are compared by a 64-bit linear hash: with a million rows a false hit is very unlikely.
    """
    arrays = canonical_arrays(dataset.transitions)
    n = len(arrays["observations"])
    parts = [arrays[key].reshape(n, -1) for key in ("observations", "actions", "rewards")]
    words = np.concatenate([np.ascontiguousarray(p).view(np.uint32) for p in parts], axis=1)
    numbers = np.random.default_rng(0).bytes(8 * words.shape[1])
    factors = np.frombuffer(numbers, dtype=np.uint64)
    hashes = np.zeros(n, dtype=np.uint64)
    for position in range(words.shape[1]):
        hashes += words[:, position] * factors[position]
    return n - len(np.unique(hashes))


def _anomalies(dataset: Dataset, duplicates: int) -> list[str]:
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
    if duplicates > MANY_DUPLICATES * stats["transitions"]:
        found.append(f"{duplicates:,} transitions repeat an earlier one")
    if stats["return_min"] == stats["return_max"] == 0:
        found.append("every episode's return is 0")
    if constant := _actions(dataset).get("constant_dimensions"):
        found.append(f"action dimensions {constant} never change")
    return found


def _longer_than_horizon(dataset: Dataset) -> int:
    if dataset.horizon is None:
        return 0
    return int((episode_lengths(dataset.transitions) > dataset.horizon).sum())


def _notes(dataset: Dataset, duplicates: int) -> list[str]:
    stats, found = dataset.stats, []
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
    if not stats["terminated"]:
        found.append("no episode terminates")
    if dataset.env_id is None:
        found.append("the environment cannot be made here: no evaluation")
    if dataset.reference is None:
        found.append("no reference scores: results are raw returns")
    return found


def render(facts: dict[str, Any]) -> str:
    """The text of a `report`, without a final newline."""
    stats, reference = facts["stats"], facts["reference"]
    horizon = facts["horizon"] or "the environment's own"
    rows = [
        ("environment", f"{facts['env_id'] or 'unknown'} ({facts['family']}), horizon {horizon}"),
        ("transitions", f"{stats['transitions']:,} in {stats['episodes']:,} episodes"),
        ("ends", f"{stats['terminated']:,} terminated, {stats['truncated']:,} truncated"),
        ("return", _moments(stats, "return")),
        ("", _bars(facts["return_histogram"])),
        ("length", _moments(stats, "length")),
        ("", _bars(facts["length_histogram"])),
        ("actions", _render_actions(facts["actions"])),
        ("duplicates", f"{facts['duplicates']:,}"),
        ("fingerprint", facts["fingerprint"]),
    ]
    if reference:
        score = facts["normalized_behaviour_score"]
        rows.append(
            (
                "reference",
                f"random {reference[0]:g}, expert {reference[1]:g}: the data scores {score:z.1f}",
            )
        )
        rows.append(("", facts["reference_source"]))
    rows += [("note", text) for text in facts["notes"]]
    rows += [("ANOMALY", text) for text in facts["anomalies"]]
    return "\n".join([facts["name"], *(f"  {key:<12} {text}" for key, text in rows)])


def _moments(stats: dict[str, float], key: str) -> str:
    mean, sd, low, high = (stats[f"{key}_{kind}"] for kind in ("mean", "sd", "min", "max"))
    return f"{mean:z.1f} ± {sd:.1f} (from {low:z.1f} to {high:z.1f})"


def _bars(histogram: dict[str, Any]) -> str:
    """One character per bin; a bin with anything in it is never blank."""
    most = max(histogram["counts"])
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in histogram["counts"])
    return f"{histogram['low']:.1f} |{bars}| {histogram['high']:.1f}"


def _render_actions(actions: dict[str, Any]) -> str:
    if "action_counts" in actions:
        return "discrete, counts " + ", ".join(f"{count:,}" for count in actions["action_counts"])
    low, high = min(actions["low"]), max(actions["high"])
    return (
        f"{len(actions['low'])} in [{low:g}, {high:g}], "
        f"{actions['saturated_percent']:.1f} % of the entries at a bound"
    )
