"""Numbers of `bench data check` against numbers worked out by hand, its figure, and the list."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.data import cards, load, render, report
from bench.data.coverage import coverage
from tests.bench.data_files import columns, write
from tests.bench.test_data_checks import bench


def facts(tmp_path, data, attributes=None):
    return report(load(write(tmp_path / "x.hdf5", data, attributes)))


@pytest.mark.parametrize(
    ("vectors", "rank"),
    [
        (np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]), 2.0),  # not correlated
        (np.array([[1, 2], [-1, -2], [3, 6]]), 1.0),  # one is twice the other
        (np.array([[1, 5], [2, 5]]), 1.0),  # the second is constant
        (np.array([[3, 5], [3, 5]]), 0.0),
        # correlation 0.6: eigenvalues 1.6 and 0.4, shares 0.8 and 0.2
        (np.array([[2, 1], [1, 2], [-2, -1], [-1, -2], [1, -1], [-1, 1]]),
         None),
    ],
)  # fmt: skip
def test_effective_rank(vectors, rank):
    if rank is None:
        shares = np.linalg.eigvalsh(np.corrcoef(vectors.T)) / 2
        rank = np.exp(-(shares * np.log(shares)).sum())
        assert 1.5 < rank < 2
    found = coverage(vectors.astype(np.float32))
    assert found["effective_rank"] == pytest.approx(rank)
    assert found["low"] == vectors.min(0).tolist() and found["sd"] == pytest.approx(vectors.std(0))
    assert found["constant"] == np.flatnonzero(np.ptp(vectors, axis=0) == 0).tolist()


def test_coverage_does_not_depend_on_the_blocks(monkeypatch):
    vectors = np.random.default_rng(0).normal(5, 2, (1000, 4)).astype(np.float32)
    whole = coverage(vectors)
    monkeypatch.setattr("bench.data.raw.BLOCK", 7)
    for key, value in coverage(vectors).items():
        assert value == pytest.approx(whole[key])


def test_ends_by_kind(tmp_path):
    data = columns((2, 3, 4, 5), "TXB-")
    data["rewards"] = np.ones(14, np.float32)
    found = facts(tmp_path, data)["ends"]
    assert {kind: end["episodes"] for kind, end in found.items()} == dict.fromkeys(found, 1)
    lengths = {kind: end["length_mean"] for kind, end in found.items()}
    assert lengths == {"terminated": 2, "truncated": 3, "both": 4, "neither": 5}
    assert {kind: end["return_mean"] for kind, end in found.items()} == lengths


def test_score_within_the_horizon(tmp_path):
    """Catches: data that seem better than evaluation ever can be."""
    data = columns((4, 8), "XX", width=11) | {"actions": np.zeros((12, 3), np.float32)}
    data["rewards"] = np.ones(12, np.float32)
    attributes = {"env_id": "Hopper-v4", "max_episode_steps": 1000}
    found = facts(tmp_path, data, attributes)
    assert found["return_within_horizon"] == 6
    assert found["normalized_score_within_horizon"] == found["normalized_behaviour_score"]
    found = facts(tmp_path, columns((4, 8), "XX") | {"rewards": data["rewards"]},
                  {"env_id": "Pendulum-v1", "max_episode_steps": 5})  # fmt: skip
    assert found["return_within_horizon"] == 4.5 and found["stats"]["return_mean"] == 6


def test_saturation_by_dimension(tmp_path):
    data = columns((4, 8), "XX", width=11)
    data["actions"] = np.zeros((12, 3), np.float32)
    data["actions"][:3, 0], data["actions"][:6, 2] = 1, -0.9995
    found = facts(tmp_path, data, {"env_id": "Hopper-v4"})
    assert found["actions"]["saturated_percent_by_dimension"] == [25, 0, 50]
    assert found["actions"]["saturated_percent"] == 25
    assert any(text.startswith("action dimensions [1] never") for text in found["anomalies"])


def test_repeated_episodes_are_an_anomaly(tmp_path):
    data = columns((4, 4, 4), "XXX")
    for key in ("observations", "actions", "rewards"):
        data[key][8:] = data[key][:4]
    found = facts(tmp_path, data)
    assert found["duplicate_episodes"] == 1 and found["duplicates"] == 4
    assert "1 episodes repeat an earlier one" in found["anomalies"]


def test_a_figure_is_drawn_where_asked(tmp_path, capsys):
    path = write(tmp_path / "x.hdf5", columns())
    bench("check", path, "--plots", tmp_path / "figures")
    (figure,) = (tmp_path / "figures").iterdir()
    assert figure.read_bytes().startswith(b"\x89PNG") and str(figure) in capsys.readouterr().err


def test_the_card_is_part_of_the_report(monkeypatch):
    monkeypatch.delenv("BENCH_DATASETS", raising=False)
    found = report(load("lite/pendulum/medium-v0"))
    assert found["card"]["licence"] == "MIT" and "licence      MIT" in render(found)
    assert json.loads(json.dumps(found)) == found


def test_published_sets_are_listed_when_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("BENCH_DATASETS", raising=False)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    absent = [card for card in cards().values() if card.minari]
    assert bench("list", "lite/pendulum/*", "D4RL/*", "mujoco/hopper/*") == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("mujoco/hopper/expert-v0"))
    assert row.split()[1:] == ["Hopper-v5", "999,164", "1,086", "-", "-", "not", "stated",
                               "bench", "data", "get"]  # fmt: skip
    assert "MiniGrid-FourRooms-v0 (no evaluation)" in shown
    assert "bench/FrankaKitchen-mixed-v1 " in shown and "mixed-v1 (no" not in shown
    monkeypatch.setattr("bench.data.listing.names", lambda: [card.id for card in absent])
    assert bench("list") == 0
    shown = capsys.readouterr().out
    assert f"{len(absent)} published sets are not here; bench data list --all" in shown
    assert bench("list", "--all") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(absent)


def test_environments_of_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.delenv("BENCH_DATASETS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bench("list", "D4RL/pen/human-v2")
    assert "AdroitHandPen-v1 (needs extra robotics)" in capsys.readouterr().out


def test_import_into_a_folder_of_arrays(tmp_path, capsys):
    path = write(tmp_path / "x.hdf5", columns())
    assert bench("import", path, tmp_path / "arrays") == 0
    assert load(str(tmp_path / "arrays")).fingerprint == load(path).fingerprint
    assert Path(tmp_path / "arrays" / "observation.memmap").exists()
