"""The loader on real data sets, wherever the environment variable BENCH_SHARED names them."""

import os
import warnings
from pathlib import Path

import pytest

from bench.data import DataWarning, load, report

SHARED = os.environ.get("BENCH_SHARED")
pytestmark = pytest.mark.skipif(not SHARED, reason="BENCH_SHARED names no folder of data sets")

# file: environment, steps, episodes, mean return, its sd, normalised score, unknown next
FILES = {
    "zoo-hopper-medium": ("Hopper-v4", 100_000, 247, 1482.8, 698.4, 46.2, 0),
    "zoo-hopper-expert": ("Hopper-v4", 100_000, 111, 3297.5, 525.2, 101.9, 0),
    "zoo-halfcheetah-medium": ("HalfCheetah-v4", 100_000, 100, 5430.4, 1182.6, 46.0, 0),
    "zoo-halfcheetah-expert": ("HalfCheetah-v4", 100_000, 100, 11345.5, 1169.7, 93.6, 0),
    "dapg-door-human": ("AdroitHandDoor-v1", 6_729, 25, 794.1, 357.7, 29.0, 25),
    "dapg-door-expert": ("AdroitHandDoor-v1", 50_000, 250, 2937.6, 377.8, 101.9, 250),
    "dapg-pen-expert": ("AdroitHandPen-v1", 50_000, 500, 3131.1, 1823.8, 101.8, 500),
    "d3rlpy-cartpole-replay": ("CartPole-v1", 98_760, 1_240, 79.6, None, None, 0),
    "d3rlpy-cartpole-random": ("CartPole-v1", 95_676, 4_324, 22.1, None, None, 0),
    "d3rlpy-pendulum-replay": ("Pendulum-v1", 99_502, 498, -183.3, None, None, 0),
    "d3rlpy-pendulum-random": ("Pendulum-v1", 99_502, 498, -1228.7, None, None, 0),
}


def quiet_load(name):
    with warnings.catch_warnings():  # Adroit cannot be made without its package
        warnings.simplefilter("ignore", DataWarning)
        return load(str(Path(SHARED) / "data" / f"{name}.hdf5"))


@pytest.mark.parametrize("name", FILES)
def test_counts_and_returns(name):
    env_id, steps, episodes, mean, sd, score, unknown = FILES[name]
    dataset = quiet_load(name)
    stats = dataset.stats
    assert dataset.recorded_env_id == env_id
    assert (stats["transitions"], stats["episodes"]) == (steps, episodes)
    assert stats["return_mean"] == pytest.approx(mean, abs=0.06)
    assert sd is None or stats["return_sd"] == pytest.approx(sd, abs=0.06)
    normalised = dataset.normalize(stats["return_mean"])
    assert normalised == (score if score is None else pytest.approx(score, abs=0.06))
    assert stats["unknown_next"] == unknown and stats["broken_chain"] == 0
    assert stats["converted_arrays"] == 0


@pytest.mark.parametrize("name", FILES)
def test_only_door_human_is_odd(name):
    found = report(quiet_load(name))["anomalies"]
    assert len(found) == (2 if name == "dapg-door-human" else 0), found


def test_door_human_actions_are_clipped():
    dataset = quiet_load("dapg-door-human")
    share = dataset.stats["clipped_entries"] / dataset.transitions["action"].numel()
    assert share == pytest.approx(0.056, abs=0.0005)
    assert dataset.transitions["action"].abs().max() == 1
