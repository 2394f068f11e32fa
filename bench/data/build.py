"""Makes a dataset from its card: train online, keep what was seen, roll policies out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict

from bench.data.card import Card
from bench.data.dataset import fingerprint, statistics
from bench.data.flat import write_flat
from bench.data.raw import Raw
from bench.data.transitions import to_transitions
from bench.errors import ConfigError

_KINDS = ("random", "replay", "rollouts")
_ROLLOUT_STREAM, _RANDOM_STREAM = 4, 5


@dataclass(frozen=True)
class Make:
    """The table ``recipe.make`` of a card.

    Args:
        kind: "random" (uniform actions), "replay" (the first transitions that training saw) or
            "rollouts" (episodes of one policy snapshot, actions sampled).
        transitions: rows of the dataset.
        seed: of the training run, and of the rollouts.
        algorithm, hyper: the online recipe.
        snapshot: environment steps after which the rolled-out policy was taken.
        interval: environment steps between snapshots.
        return_mean, tolerance: mean episode return on the machine that made the embedded file, and
            how far another machine's may lie from it: floating point differs between CPUs, and
            training amplifies the last bit.
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

    @property
    def training_steps(self) -> int:
        return self.transitions if self.kind == "replay" else self.snapshot


@dataclass(frozen=True)
class Made:
    """What making a dataset gave."""

    transitions: TensorDict
    fingerprint: str
    stats: dict[str, float]

    def verdict(self, card: Card, make: Make) -> tuple[bool, str]:
        """Whether this is the card's dataset, and in what sense."""
        if self.fingerprint == card.fingerprint:
            return True, "bit-equal to the embedded file"
        mean = self.stats["return_mean"]
        if make.return_mean is None or make.tolerance is None:
            return True, "the card records no result to compare with"
        off = abs(mean - make.return_mean)
        text = f"mean return {mean:.1f}, the card's is {make.return_mean:.1f}"
        if off <= make.tolerance:
            return True, f"not bit-equal, within the tolerance of {make.tolerance:g}: {text}"
        return False, f"outside the tolerance of {make.tolerance:g}: {text}"


def training_folder(root: Path, env_id: str, make: Make) -> Path:
    """Where the training run lives that a card's data comes from; cards share it."""
    parts = [env_id, make.algorithm, f"seed-{make.seed}"]
    parts += [f"{k}-{v}" for k, v in sorted(make.hyper.items())]
    parts += [f"every-{make.interval}"]
    return root / "-".join(str(p).replace("/", "-").replace(" ", "") for p in parts)


def make_dataset(card: Card, root: Path, report: Callable[[str], None]) -> Made:
    """Make a card's dataset; the training run under ``root`` resumes and is shared by cards."""
    make = Make.of(card)
    if make.kind == "random":
        seen = _random(card.env_id, make)
    else:
        seen = _trained(card.env_id, make, root, report)
    raw = _raw(card, seen, make.transitions)
    transitions, _, counts = to_transitions(raw)
    return Made(transitions, fingerprint(transitions), statistics(transitions, counts))


def write_made(made: Made, card: Card, path: Path) -> None:
    """Write the flat file with its provenance."""
    from bench.provenance import git_commit, versions

    make = dataclasses.asdict(Make.of(card))
    attributes = {"dataset_id": card.id, "licence": card.licence, "description": card.description}
    attributes |= {"recipe": json.dumps(make, sort_keys=True), "versions": json.dumps(versions())}
    attributes["git_commit"] = git_commit() or "unknown"
    write_flat(path, made.transitions, env_id=card.env_id, attributes=attributes)


def _trained(
    env_id: str, make: Make, root: Path, report: Callable[[str], None]
) -> dict[str, np.ndarray]:
    from bench.engine import cpu
    from bench.online.collect import Collection
    from bench.recipe import load_recipe

    cpu.prepare()
    recipe = load_recipe(make.algorithm)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in make.hyper.items()}
    hyper = recipe.hyper(**chosen)
    folder = training_folder(root, env_id, make)
    run = Collection(recipe, hyper, env_id, make.seed, make.training_steps, folder, make.interval)

    def progress(step: int, curve: list) -> None:
        last = f", return {curve[-1][1]:.0f}" if curve else ""
        report(f"{env_id}: step {step}/{make.training_steps}{last}")

    if run.replay.size:
        report(f"{env_id}: going on from the {run.replay.size} steps in {folder}")
    run.run(progress)
    if make.kind == "replay":
        return run.replay.arrays()
    return _rollouts(run, make)


def _raw(card: Card, seen: dict[str, np.ndarray], rows: int) -> Raw:
    """The loaders' raw columns from the first rows of a replay's arrays."""
    cut = {k: v[:rows] for k, v in seen.items()}
    return Raw(
        source=card.id,
        env_id=card.env_id,
        observations=cut["observation"],
        actions=cut["action"],
        rewards=cut["reward"][:, 0],
        terminated=cut["terminated"][:, 0].astype(bool),
        truncated=cut["truncated"][:, 0].astype(bool),
        next_observations=cut["next_observation"],
    )


def _rollouts(run: Any, make: Make) -> dict[str, np.ndarray]:
    """Episodes of a snapshot with sampled actions."""
    from bench.store import load_checkpoint

    found = load_checkpoint(run.folder / "snapshots" / str(make.snapshot))
    if found is None:
        raise ConfigError(
            f"snapshot {make.snapshot}: the training run keeps one every {run.interval} steps"
        )
    for name, value in found[1].items():
        run.trainer.tensors[name][0].copy_(value)
    return _episodes(run.env, make, _ROLLOUT_STREAM, run.sample_action)


def _random(env_id: str, make: Make) -> dict[str, np.ndarray]:
    """Episodes of uniformly random actions."""
    from bench.evaluate import make_env

    env = make_env(env_id)
    low, high = env.action_space.low, env.action_space.high

    def act(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (low + (high - low) * rng.random(low.shape)).astype(np.float32)

    return _episodes(env, make, _RANDOM_STREAM, act)


def _episodes(
    env: Any,
    make: Make,
    stream: int,
    act: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> dict[str, np.ndarray]:
    from bench.engine.trainer import stream_seed
    from bench.online.collect import Replay

    observation_width = int(np.prod(env.observation_space.shape))
    seen = Replay(make.transitions, observation_width, env.action_space.shape[0], 1)
    episode = 0
    while seen.size < make.transitions:
        start = stream_seed(make.seed, stream, episode)
        rng = np.random.default_rng(start)
        observation, _ = env.reset(seed=start % 2**31)
        ended = False
        while not ended and seen.size < make.transitions:
            action = act(observation, rng)
            following, reward, terminated, truncated, _ = env.step(action)
            seen.add(
                observation=observation,
                action=action,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                next_observation=following,
            )
            observation, ended = following, terminated or truncated
        episode += 1
    return seen.arrays()
