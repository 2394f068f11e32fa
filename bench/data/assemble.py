"""From raw columns and what a card or file says to a `Dataset`, or to what a listing shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bench.data import envs
from bench.data.card import Behaviour, Reference
from bench.data.dataset import Dataset, fingerprint, fingerprint_next, statistics
from bench.data.raw import Raw, fail, warn
from bench.data.reference import d4rl_horizon, d4rl_reference
from bench.data.transitions import lengths_and_returns, to_transitions
from bench.envs import caution, package


@dataclass(frozen=True)
class About:
    """What is known of raw columns besides what they hold.

    Without a `name` the dataset becomes '<label>-<fingerprint[:8]>'. `family` and `horizon` come
    from a card; without them they follow from the environment id. `strict` turns the warnings
    about clipped actions and about guessed episode ends into errors. `not_evaluated` is a reason
    why the environment, even where it can be made, is none to score runs in; `without_reference`
    leaves scores as they are.
    """

    label: str
    name: str | None = None
    strict: bool = False
    family: str | None = None
    horizon: int | None = None
    minari: bool = False
    not_evaluated: str = ""
    without_reference: bool = False

    def task(self, raw: Raw) -> tuple[str, int | None, Reference | None]:
        """Family, evaluation horizon and reference (D4RL's published one, where it applies)."""
        family = self.family or envs.family(raw.env_id)
        horizon = self.horizon or raw.max_episode_steps or d4rl_horizon(family)
        if self.without_reference:
            return family, horizon, None
        return family, horizon, d4rl_reference(raw.env_id, family, horizon, minari=self.minari)


@dataclass(frozen=True)
class Outline:
    """What a listing shows of a dataset: `lengths` and `returns` of its episodes, [episodes]; the
    rest as in `Dataset`."""

    env_id: str | None
    lengths: np.ndarray
    returns: np.ndarray
    reference: tuple[float, float] | None
    behaviour: Behaviour | None = None


def to_outline(raw: Raw, about: About) -> Outline:
    """Look at rewards and flags alone; the environment is not made."""
    _, limit, reference = about.task(raw)
    if raw.truncated is None and limit is None and raw.env_id is not None:
        limit = envs.step_limit(raw.env_id)
    ends = (reference.random, reference.expert) if reference else None
    return Outline(raw.env_id, *lengths_and_returns(raw, limit), ends)


def to_dataset(raw: Raw, about: About) -> Dataset:
    """Check and convert `raw`.

    Raises `DataError` for what is unusable, and where the file is one of ours and its data are not
    what it says was written.
    """
    import torch

    info = _environment(raw, about.not_evaluated)
    family, horizon, reference = about.task(raw)
    transitions, spec, counts = to_transitions(raw, info, limit=horizon, strict=about.strict)
    digest, following = fingerprint(transitions), fingerprint_next(transitions)
    _check_stated(raw, counts, digest, following)
    return Dataset(
        name=about.name or f"{about.label}-{digest[:8]}",
        transitions=transitions,
        env_id=raw.env_id if info else None,
        horizon=horizon,
        fingerprint=digest,
        fingerprint_next=following,
        reference=(reference.random, reference.expert) if reference else None,
        reference_source=reference.source if reference else None,
        discrete=spec.n is not None,
        action_low=None if spec.low is None else torch.tensor(spec.low),
        action_high=None if spec.high is None else torch.tensor(spec.high),
        n_actions=spec.n,
        family=family,
        stats=statistics(transitions, counts),
        recorded_env_id=raw.env_id,
    )


def _check_stated(raw: Raw, counts: Counter[str], digest: str, following: str) -> None:
    """Our own files say what was written into them: anything else is damage, or an edit."""
    if counts["clipped_entries"]:  # of actions, to the bounds of another environment
        return
    for key, found in (("fingerprint", digest), ("fingerprint_next", following)):
        written = raw.attributes.get(key, found)
        if written != found:
            what = f"is {found}, the file says that {written} was written"
            fail(raw.source, key, what, "restore the file; if it was edited, delete the attribute")


def _environment(raw: Raw, not_evaluated: str) -> envs.EnvInfo | None:
    """What gymnasium says, or None with a warning that evaluation is impossible."""
    if not_evaluated:
        warn(raw.source, f"runs on it cannot be evaluated: {not_evaluated}")
        return None
    if raw.env_id is None:
        warn(
            raw.source,
            "names no environment, so runs on it cannot be evaluated; give one with --env-id",
        )
        return None
    try:
        info = envs.describe(raw.env_id)
    except envs.EnvUnavailable as error:
        missing = package(raw.env_id)
        hint = f"install {missing}" if missing else "give a version that runs with --env-id"
        warn(
            raw.source,
            f"environment {raw.env_id} cannot be made here ({error}), so runs on it "
            f"cannot be evaluated; {hint}",
        )
        return None
    if known := caution(raw.env_id):
        warn(raw.source, known)
    return info
