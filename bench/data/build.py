"""Makes a dataset from its card: train online, keep what was seen, roll policies out, or follow a
script."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data import envs
from bench.data.card import Card
from bench.data.dataset import fingerprint, fingerprint_next, statistics
from bench.data.flat import write_flat
from bench.data.raw import Raw
from bench.data.training import Say, hyperparameters, legs, train, training_folder
from bench.data.transitions import to_transitions
from bench.errors import ConfigError

if TYPE_CHECKING:
    from tensordict import TensorDict

_KINDS = ("random", "replay", "rollouts", "waypoints")
_OUTCOME = ("return_mean", "tolerance", "fingerprint")  # what a recipe says of what comes out
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Make:
    """The table ``recipe.make`` of a card.

    Args:
        kind: "random" (uniform actions), "replay" (the first transitions that training saw),
            "rollouts" (episodes of one policy snapshot, exploring as in training) or "waypoints"
            (a script that walks through a point maze).
        transitions: rows of the dataset.
        seed: of the training run, and of the rollouts.
        algorithm, hyper: the online recipe.
        snapshot: environment steps after which the rolled-out policy was taken.
        interval: environment steps between snapshots.
        return_mean, tolerance: mean episode return on the machine that made the set, and how far
            another machine's may lie from it: floating point differs between CPUs, and training
            amplifies the last bit.
        fingerprint: on that machine, of a set that is not kept in git.
    """

    kind: str
    transitions: int
    seed: int = 0
    algorithm: str = "sac"
    snapshot: int = 0
    interval: int = 5_000
    hyper: dict[str, Any] = dataclasses.field(default_factory=dict)
    return_mean: float | None = None
    tolerance: float | None = None
    fingerprint: str = ""

    @classmethod
    def of(cls, card: Card) -> Make:
        """Raises ConfigError when the card does not say how its data is made."""
        table = card.recipe.get("make")
        if not table:
            how = "it combines others" if card.combine else "its card has no recipe.make"
            raise ConfigError(f"{card.id} cannot be made: {how}")
        unknown = set(table) - {f.name for f in dataclasses.fields(cls)}
        if unknown or table.get("kind") not in _KINDS:
            raise ConfigError(f"{card.id}: recipe.make: unknown {sorted(unknown) or 'kind'}")
        return cls(**table)

    def verdict(self, card: Card, digests: tuple[str, str], mean: float) -> tuple[bool, str]:
        """Whether data are the card's, and in what sense, by their two fingerprints and mean
        return."""
        if digests[0] in (card.fingerprint, self.fingerprint) and (
            card.fingerprint_next in ("", digests[1])
        ):
            return True, "bit-equal to " + ("the embedded file" if card.fingerprint else "the card")
        if self.return_mean is None or self.tolerance is None:
            return True, "the card records no result to compare with"
        text = f"mean return {mean:.1f}, the card's is {self.return_mean:.1f}"
        if abs(mean - self.return_mean) <= self.tolerance:
            near = f"not bit-equal, within the tolerance of {self.tolerance:g}: {text}"
            return True, f"{near}; an own make, whose fingerprint results record"
        return False, f"outside the tolerance of {self.tolerance:g}: {text}"

    def text(self) -> str:
        """All of the recipe, as files keep it."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def made(self, text: str) -> bool:
        """Whether a file that keeps `text` was made by this recipe, whatever came out. What an
        older file does not mention is as it is by default."""
        mine = json.loads(self.text())
        try:
            kept = {key: value for key, value in json.loads(text).items() if key in mine}
            theirs = json.loads(Make(**kept).text())
        except (ValueError, AttributeError, TypeError):
            return False
        return all(theirs[key] == mine[key] for key in mine if key not in _OUTCOME)

    @property
    def trains(self) -> bool:
        return self.kind in ("replay", "rollouts")

    @property
    def training_steps(self) -> int:
        return self.transitions if self.kind == "replay" else self.snapshot


@dataclass(frozen=True)
class Made:
    """What making a dataset gave; `training` says which code trained."""

    transitions: TensorDict
    fingerprint: str
    fingerprint_next: str
    stats: dict[str, float]
    training: list[dict[str, Any]] = field(default_factory=list)

    def verdict(self, card: Card, make: Make) -> tuple[bool, str]:
        """Whether this is the card's dataset, and in what sense."""
        digests = (self.fingerprint, self.fingerprint_next)
        return make.verdict(card, digests, self.stats["return_mean"])


def make_dataset(card: Card, root: Path, say: Say) -> Made:
    """Make a card's dataset; the training run under ``root`` resumes and is shared by cards.

    Raises:
        ConfigError: when the card's recipe does not fit its environment.
    """
    from bench.envs import behind

    make = Make.of(card)
    env_id, view = behind(card.env_id)
    seen = {k: v[: make.transitions] for k, v in _seen(env_id, make, root, say).items()}
    if view is not None:
        seen |= {k: view(seen[k]) for k in ("observation", "next_observation")}
    info = envs.describe(card.env_id)  # as loading: rounding may put actions outside the bounds
    transitions, _, counts = to_transitions(_raw(card, seen), info)
    return Made(
        transitions,
        fingerprint(transitions),
        fingerprint_next(transitions),
        statistics(transitions, counts),
        legs(training_folder(root, env_id, make)) if make.trains else [],
    )


def write_made(made: Made, card: Card, path: Path) -> None:
    """Write the flat file with its provenance."""
    from bench.engine.cpu import model_name
    from bench.provenance import git_commit, versions

    make = Make.of(card)
    attributes = {"dataset_id": card.id, "licence": card.licence, "description": card.description}
    attributes |= {key: getattr(made, key) for key in ("fingerprint", "fingerprint_next")}
    attributes["recipe"] = make.text()
    if make.trains:
        hyper = dataclasses.asdict(hyperparameters(make)[1])
        attributes["hyperparameters"] = json.dumps(hyper, sort_keys=True)
        attributes["training"] = json.dumps(made.training, sort_keys=True)
    attributes |= {"versions": json.dumps(versions(card.env_id)), "machine": model_name()}
    attributes["git_commit"] = git_commit() or "unknown"
    write_flat(path, made.transitions, env_id=card.env_id, attributes=attributes)


def _seen(env_id: str, make: Make, root: Path, say: Say) -> Columns:
    """At least the rows asked for, by column of :class:`bench.online.replay.Replay`."""
    from bench.online import record
    from bench.online.waypoints import waypoint_play

    if make.kind == "random":
        return record.random_play(env_id, make.transitions, make.seed)
    if make.kind == "waypoints":
        return waypoint_play(env_id, make.transitions, make.seed)
    run = train(env_id, make, make.training_steps, root, say)
    if make.kind == "rollouts":
        return record.snapshot_play(run, make.snapshot, make.transitions)
    return run.replay.arrays()


def _raw(card: Card, seen: Columns) -> Raw:
    """The loaders' raw columns from a replay's arrays."""
    actions = seen["action"]
    return Raw(
        source=card.id,
        env_id=card.env_id,
        observations=seen["observation"],
        actions=actions.astype(np.int64) if actions.ndim == 1 else actions,
        rewards=seen["reward"][:, 0],
        terminated=seen["terminated"][:, 0].astype(bool),
        truncated=seen["truncated"][:, 0].astype(bool),
        next_observations=seen["next_observation"],
    )
