"""The programs that ``bench perf`` runs side by side; each answers :mod:`bench.perf.protocol`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rival:
    """A program under ``bench/perf/rivals``.

    Args:
        module: its file.
        about: what is measured, for the report.
        own_environment: it runs in ``.venv-perf-<name>``, built from ``<name>.txt`` beside it.
    """

    name: str
    module: str
    about: str
    own_environment: bool = False


ENGINE = Rival(
    "engine",
    "engine",
    "`bench run`'s training program, metrics included",
)
RIVALS = (
    Rival(
        "bare",
        "bare",
        "the same update written by hand on bare torch, with the engine's CPU settings",
    ),
    Rival(
        "torchrl",
        "torchrl_eager",
        "torchrl.objectives with the update of TorchRL's own scripts, eager, without logging",
        own_environment=True,
    ),
    Rival(
        "d3rlpy",
        "d3rlpy_loop",
        "d3rlpy's `sample_transition_batch` and `update`, as its `fit` calls them",
        own_environment=True,
    ),
)
