"""Datasets of any environment by their usual names: random, medium, medium-replay, expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.data import envs
from bench.data.build import Make
from bench.data.card import Card
from bench.data.training import Say, train
from bench.envs import behind
from bench.errors import ConfigError


@dataclass(frozen=True)
class Wish:
    """What `bench data make --env-id` was asked for.

    `steps` is how long training lasts, `transitions` how many rows are wanted (0: 50,000, and of a
    replay all there are), `settings` are hyper-parameters as text.
    """

    env_id: str
    kind: str
    algorithm: str = "sac"
    steps: int = 300_000
    transitions: int = 0
    seed: int = 0
    interval: int = 5_000
    settings: Mapping[str, str] = field(default_factory=dict)


def card_of(wish: Wish, root: Path, say: Say) -> Card:
    """A card for `make_dataset`; for levels of skill training comes first, under `root`.

    Raises `ConfigError` for what cannot be had.
    """
    envs.check_known(wish.env_id)
    make = _make(wish)
    if wish.kind in ("medium", "medium-replay", "expert"):
        run = train(behind(wish.env_id)[0], make, wish.steps, root, say)
        snapshot = choose(run.curve, "expert" if wish.kind == "expert" else "medium")
        say(f"{wish.env_id}: {wish.kind} is of the policy after {snapshot} steps")
        make = dataclasses.replace(make, snapshot=snapshot)
        if wish.kind == "medium-replay":
            rows = min(snapshot, wish.transitions or snapshot)
            make = dataclasses.replace(make, transitions=rows)
    table = {k: v for k, v in dataclasses.asdict(make).items() if v not in (None, "")}
    return Card(
        id=f"{wish.env_id}/{wish.kind}",
        env_id=wish.env_id,
        family=envs.family(wish.env_id),
        licence="unknown",
        description=f"{wish.kind} data of {wish.env_id}",
        path=None,
        recipe={"make": table},
    )


def choose(curve: Sequence[Sequence[float]], level: str) -> int:
    """The step of the snapshot that is expert or medium, from (step, mean return, ...) rows.

    Expert is the best. Medium is the snapshot before it whose return is nearest to halfway between
    the first snapshot's and the best one's; of several the first.

    Raises `ConfigError` where nothing was learnt.
    """
    best = max(range(len(curve)), key=lambda i: curve[i][1], default=0)
    if level == "expert" and curve:
        return int(curve[best][0])
    if best == 0:
        raise ConfigError("training got no better than its first snapshot: train longer (--steps)")
    halfway = (curve[0][1] + curve[best][1]) / 2
    return int(min(curve[:best], key=lambda row: abs(row[1] - halfway))[0])


def _make(wish: Wish) -> Make:
    """The recipe as far as it is known before training."""
    from bench.online.agents import load_agent

    recipe = load_agent(wish.algorithm)
    hyper = dataclasses.asdict(recipe.hyperparameters((), "paper", wish.settings))
    defaults = dataclasses.asdict(recipe.hyper())
    kinds = {"medium": "rollouts", "expert": "rollouts", "medium-replay": "replay"}
    rows = wish.steps if wish.kind == "replay" else 50_000
    changed: dict[str, Any] = {k: v for k, v in hyper.items() if v != defaults[k]}
    return Make(
        kind=kinds.get(wish.kind, wish.kind),
        transitions=wish.transitions or rows,
        seed=wish.seed,
        algorithm=wish.algorithm,
        interval=wish.interval,
        hyper={k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()},
    )
