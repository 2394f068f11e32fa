"""Raw returns of a random and an expert policy, to which normalised scores refer."""

import csv
from functools import lru_cache
from pathlib import Path

from bench.data.card import Reference, shipped_root
from bench.data.envs import ADROIT
from bench.errors import ConfigError

# D4RL's scores hold for these episode lengths only (pen: the environment's own 200 doubles them).
D4RL_HORIZONS = {
    "hopper": 1000,
    "halfcheetah": 1000,
    "walker2d": 1000,
    "ant": 1000,
    "pen": 100,
    "door": 200,
    "hammer": 200,
    "relocate": 200,
}
# Minari recorded these with other rewards at the goal, or as another task, than D4RL did.
NOT_D4RL_IN_MINARI = ("antmaze", "kitchen", "maze2d")


def d4rl_horizon(family: str) -> int | None:
    """Evaluation horizon that D4RL's Adroit scores need; elsewhere the environment's own is it."""
    return D4RL_HORIZONS[family] if family in ADROIT else None


def d4rl_reference(
    env_id: str | None, family: str, horizon: int | None, *, minari: bool = False
) -> Reference | None:
    """D4RL's published reference for an environment, None where it does not apply.

    It does not apply to environments D4RL has no scores for, to other horizons than D4RL's, and
    to those of Minari's sets that are another task (`minari`). A family whose variants have
    different scores (maze2d) is matched by the full D4RL id only.
    """
    if env_id is None or (minari and family in NOT_D4RL_IN_MINARI):
        return None
    if horizon is not None and horizon != D4RL_HORIZONS.get(family, horizon):
        return None
    table = _table(shipped_root() / "cards" / "reference_scores.csv")
    exact = table.get(f"d4rl/{env_id}")
    found = {exact} if exact else {v for k, v in table.items() if _family(k) == family}
    if len(found) != 1:
        return None
    random, expert, source = found.pop()
    other = "; used for Minari's data, for which none are published" if minari else ""
    return Reference(random, expert, f"D4RL {family} ({source}), applied to {env_id}{other}")


def _family(dataset: str) -> str:
    return dataset.removeprefix("d4rl/").split("-")[0]


@lru_cache(maxsize=4)
def _table(path: Path) -> dict[str, tuple[float, float, str]]:
    """Dataset id -> (random, expert, source)."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {
                row["dataset"]: (float(row["random"]), float(row["expert"]), row["source"])
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a table of dataset,random,expert,source ({error!r}); restore it from git"
        ) from error
