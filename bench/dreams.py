"""How imagined returns of a world model follow real ones: ``python -m bench.dreams RUN``.

A world model watches the first steps of a stored sequence that it was not trained on, then imagines
what the sequence's next actions earn. Ranks of imagined and real returns are compared (Spearman),
beside those of a forecast that costs nothing: that the last reward seen goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tensordict import TensorDict
from torch import Tensor

from bench.engine.evaluation import as_hyper
from bench.engine.problem import problem_of, training_table
from bench.engine.sampling import WindowSampler, gather
from bench.errors import BenchError, ConfigError, RunError
from bench.recipes import dreamer
from bench.trained.run import checkpoint_of, data_of, read_config

_DREAMS = 8  # that a forecast is the mean of


@dataclass(frozen=True)
class Comparison:
    """Returns of windows, ``[n]`` each, in the units of the data."""

    imagined: np.ndarray
    real: np.ndarray
    last: np.ndarray  # if the last reward seen went on

    @property
    def spearman(self) -> float:
        return rank_correlation(self.imagined, self.real)

    @property
    def spearman_last(self) -> float:
        return rank_correlation(self.last, self.real)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; ties share their mean rank."""
    return float(np.corrcoef(pd.Series(a).rank(), pd.Series(b).rank())[0, 1])


def held_out(hp: dreamer.Hyper, dataset: Any, length: int) -> TensorDict:
    """Windows ``[n, length]`` that do not overlap, of the episodes that training leaves out, as the
    world model sees them.

    Raises:
        ConfigError: when there are none.
    """
    recipe = replace(dreamer.RECIPE, table=dreamer.held_out_table)
    if not hp.held_out:
        raise ConfigError(f"{dataset.name}: this run trained on every episode (held_out=0)")
    table = training_table(recipe, hp, dataset.transitions, problem_of(dataset, hp))
    _, counts = torch.unique_consecutive(table["episode"], return_counts=True)
    ends = zip(counts.tolist(), counts.cumsum(0).tolist(), strict=True)
    starts = [i for rows, end in ends for i in range(end - rows, end - length + 1, length)]
    if not starts:
        raise ConfigError(f"{dataset.name}: no held-out episode has {length} steps")
    return gather(WindowSampler(table, 1, length), torch.tensor([starts]))[0]


@torch.no_grad()
def compare(loss: Any, hp: dreamer.Hyper, batch: TensorDict, context: int) -> Comparison:
    """Imagined and real returns of what follows the first ``context`` steps of windows
    ``[n, length]``."""
    seen = dreamer.windows(hp, batch)[:, :context]
    watched = loss["model"].world_model(seen)["next"]
    start = watched.select("state", "belief")[:, -1].repeat(_DREAMS)
    actions = batch["action"][:, context:].repeat(_DREAMS, 1, 1)
    stored = iter(actions.unbind(1))
    env = loss["actor"].model_based_env
    dream = env.rollout(
        actions.shape[1],
        lambda state: state.set("action", next(stored)),
        auto_reset=False,
        tensordict=env.reset(start),
    )
    imagined = dream["next", "reward"].sum((1, 2)).unflatten(0, (_DREAMS, -1)).mean(0)
    reward = batch["next", "reward"].squeeze(-1)
    last = reward[:, context - 1] * actions.shape[1]
    found = (imagined, reward[:, context:].sum(1), last)
    bias = actions.shape[1] * hp.reward_bias
    return Comparison(*(((x - bias) / hp.reward_scale).numpy() for x in found))


def measure(run: Path, dataset: str | None, context: int, horizon: int | None) -> Comparison:
    """The last checkpoint of a run's seed on the sequences it left out.

    Raises:
        RunError: when there is no such run, or it is not Dreamer's.
        ConfigError: when the dataset is another one than it trained on.
    """
    config = read_config(run)
    if config["algorithm"] != dreamer.RECIPE.name:
        raise RunError(f"{run}: is a run of {config['algorithm']}, which imagines nothing")
    data = data_of(run, config, dataset)
    hp = as_hyper(dreamer.RECIPE, config["hyperparameters"])
    loss = dreamer.build(hp, problem_of(data, hp)).loss
    batch = held_out(hp, data, context + (horizon or hp.horizon))
    with loss.bind(_tensors(run, config)), torch.random.fork_rng():
        torch.manual_seed(0)
        return compare(loss, hp, batch, context)


def _tensors(run: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    _, tensors, _ = checkpoint_of(run, config)
    position = config["group"].index(config["seed"])
    return {k: t[position] for k, t in tensors.items() if t.ndim}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.dreams",
        description="Imagined against real returns, on sequences that training left out.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of seeds")
    parser.add_argument("--dataset", help="the file, for a run on one (default: the run's)")
    parser.add_argument("--context", type=int, default=16, help="steps seen (default: 16)")
    parser.add_argument("--horizon", type=int, help="steps imagined (default: as in training)")
    args = parser.parse_args(argv)
    try:
        for run in args.runs:
            print(_line(run, measure(run, args.dataset, args.context, args.horizon)))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _line(run: Path, found: Comparison) -> str:
    means = f"imagined {found.imagined.mean():.2f}, real {found.real.mean():.2f}"
    return (
        f"{run}: Spearman {found.spearman:.3f} over {len(found.real)} windows "
        f"(if the last reward went on: {found.spearman_last:.3f}); mean return {means}"
    )


if __name__ == "__main__":
    sys.exit(main())
