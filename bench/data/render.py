"""The `report` of a dataset for people: text, and a figure."""

from pathlib import Path
from typing import Any

import numpy as np

BARS = " ▁▂▃▄▅▆▇█"


def render(facts: dict[str, Any]) -> str:
    """The text of a `report`, without a final newline."""
    stats = facts["stats"]
    horizon = facts["horizon"] or "the environment's own"
    rows = [
        ("environment", f"{facts['env_id'] or 'unknown'} ({facts['family']}), horizon {horizon}"),
        ("transitions", f"{stats['transitions']:,} in {stats['episodes']:,} episodes"),
        ("ends", f"{stats['terminated']:,} terminated, {stats['truncated']:,} truncated"),
        *(("", _end(kind, end)) for kind, end in facts["ends"].items() if end["episodes"]),
        ("return", _moments(stats, "return")),
        ("", _bars(facts["return_histogram"])),
        ("length", _moments(stats, "length")),
        ("", _bars(facts["length_histogram"])),
        ("rewards", _rewards(facts["rewards"])),
        ("actions", _actions(facts["actions"])),
        ("observations", _observations(facts["observations"])),
        ("duplicates", f"{facts['duplicates']:,} transitions, "
                       f"{facts['duplicate_episodes']:,} episodes"),
        ("fingerprint", facts["fingerprint"]),
        *_reference(facts),
        *_source(facts["card"]),
    ]  # fmt: skip
    rows += [("note", text) for text in facts["notes"]]
    rows += [("ANOMALY", text) for text in facts["anomalies"]]
    return "\n".join([facts["name"], *(f"  {key:<12} {text}" for key, text in rows)])


def _end(kind: str, end: dict[str, Any]) -> str:
    return (
        f"{end['episodes']:,} episodes {kind}: length {end['length_mean']:.1f}, "
        f"return {end['return_mean']:z.1f} on average"
    )


def _moments(stats: dict[str, float], key: str) -> str:
    mean, sd, low, high = (stats[f"{key}_{kind}"] for kind in ("mean", "sd", "min", "max"))
    return f"{mean:z.1f} ± {sd:.1f} (from {low:z.1f} to {high:z.1f})"


def _bars(histogram: dict[str, Any]) -> str:
    """One character per bin; a bin with anything in it is never blank."""
    most = max(histogram["counts"])
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in histogram["counts"])
    return f"{histogram['low']:.1f} |{bars}| {histogram['high']:.1f}"


def _rewards(rewards: dict[str, float]) -> str:
    return (
        f"{rewards['mean']:z.4g} ± {rewards['sd']:.4g} per step (from {rewards['low']:z.4g} to "
        f"{rewards['high']:z.4g}), {rewards['zero_percent']:.1f} % are 0"
    )


def _actions(actions: dict[str, Any]) -> str:
    if "action_counts" in actions:
        return "discrete, counts " + ", ".join(f"{count:,}" for count in actions["action_counts"])
    low, high = min(actions["low"]), max(actions["high"])
    most = max(actions["saturated_percent_by_dimension"])
    return (
        f"{len(actions['low'])} in [{low:g}, {high:g}], "
        f"{actions['saturated_percent']:.1f} % of the entries at a bound (of one dimension up to "
        f"{most:.1f} %), effective rank {actions['coverage']['effective_rank']:.1f}"
    )


def _observations(observations: dict[str, Any]) -> str:
    shape = " x ".join(map(str, observations["shape"]))
    if "coverage" not in observations:
        return f"{shape}, {observations['dtype']}"
    filled = observations["coverage"]
    spread = (
        f"{shape} numbers from {min(filled['low']):z.4g} to {max(filled['high']):z.4g}, standard "
        f"deviations {min(filled['sd']):.3g} to {max(filled['sd']):.3g}"
    )
    return f"{spread}, effective rank {filled['effective_rank']:.1f}"


def _reference(facts: dict[str, Any]) -> list[tuple[str, str]]:
    reference, behaviour = facts["reference"], facts["behaviour"]
    rows = []
    if reference:
        ends = f"random {reference[0]:g}, expert {reference[1]:g}"
        score = "" if behaviour else f": the data scores {_scores(facts)}"
        rows += [("reference", ends + score), ("", facts["reference_source"])]
    if behaviour:
        rows += [("behaviour", behaviour["note"]), ("", _evaluated(facts))]
    return rows


def _scores(facts: dict[str, Any]) -> str:
    score, within = facts["normalized_behaviour_score"], facts["normalized_score_within_horizon"]
    return f"{score:z.1f}" + ("" if score == within else f", {within:z.1f} within the horizon")


def _evaluated(facts: dict[str, Any]) -> str:
    """What evaluations of the policy behind the data gave."""
    behaviour, score = facts["behaviour"], facts["normalized_behaviour_score"]
    if behaviour["mean_return"] is None:
        return "its score in evaluations was not measured"
    normalized = "" if score is None else f", which scores {score:z.1f}"
    return f"evaluations return {behaviour['mean_return']:z.1f}{normalized}: {behaviour['source']}"


def _source(card: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the card says and the data cannot."""
    if card is None:
        return []
    rows = [("licence", card["licence"])]
    if card["licence_source"]:
        rows.append(("", card["licence_source"]))
    if card["recorded_in"]:
        rows.append(("recorded in", card["recorded_in"]))
    rows += [("before use", f"{who}: {what}") for who, what in card["preprocessing"].items()]
    if card["not_comparable_with"]:
        rows.append(("do not", f"compare with {', '.join(card['not_comparable_with'])}"))
    return rows


def plot(facts: dict[str, Any], folder: Path) -> Path:
    """Histograms of returns and lengths as <folder>/<name>.png; returns the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, unit in zip(axes, ("return", "length"), ("raw return", "steps"), strict=True):
        histogram = facts[f"{key}_histogram"]
        edges = np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1)
        axis.stairs(histogram["counts"], edges, fill=True)
        axis.set(xlabel=f"{key} of an episode ({unit})", ylabel="episodes", ylim=(0, None))
    figure.suptitle(f"{facts['name']}: {facts['stats']['episodes']:,} episodes", fontsize="medium")
    path = folder / f"{facts['name'].replace('/', '-')}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
