"""`bench data list` looks at rewards and flags alone; where episodes end that do not say so."""

import importlib
import os
import subprocess
import sys
from contextlib import nullcontext

import h5py
import numpy as np
import pytest

from bench.cli import main
from bench.data import DataWarning, cards, load
from bench.data.loading import outline
from tests.bench.data_files import PENDULUM, columns, discrete, without, write
from tests.bench.runs import environment

SETS = [name for name, card in cards().items() if card.fingerprint]


def bench(*words):
    return main(["data", *map(str, words)])


# ----------------------------------------------------------------------------------- listings


@pytest.mark.parametrize("name", SETS)
def test_an_outline_is_what_loading_finds(name):
    found, dataset = outline(name), load(name)
    assert len(found.lengths) == dataset.stats["episodes"]
    assert found.lengths.sum() == dataset.stats["transitions"]
    assert found.returns.mean() == dataset.stats["return_mean"]
    assert found.reference == dataset.reference and found.behaviour == dataset.behaviour
    assert found.env_id == dataset.recorded_env_id


@pytest.mark.parametrize("kind", ["flat", "discrete", "minari", "npz", "arrays", "untimed", "pen"])
def test_an_outline_of_every_format(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    data, facts = columns((250, 5, 3), "TXX"), PENDULUM
    if kind == "discrete":
        data, facts = discrete(), {"env_id": "CartPole-v1"}
    if kind in ("untimed", "pen"):
        data = without(data, "timeouts", "final_observations")
        facts = {"env_id": "Pendulum-v1" if kind == "untimed" else "AdroitHandPen-v1"}
    if kind == "pen":
        data |= {"observations": np.zeros((258, 45), "f4"), "actions": np.zeros((258, 24), "f4")}
        pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    ref = write(tmp_path / "x.hdf5", data, facts)
    if kind == "minari":
        assert bench("export", ref, "my/set-v0") == 0
        ref = "my/set-v0"
    if kind == "npz":
        ref = str(tmp_path / "x.npz")
        np.savez(ref, **data, env_id=facts["env_id"], max_episode_steps=200)
    if kind == "arrays":
        assert bench("import", ref, tmp_path / "x") == 0
        ref = str(tmp_path / "x")
    with pytest.warns(DataWarning) if kind in ("untimed", "pen") else nullcontext():
        found, dataset = outline(ref), load(ref)
    assert len(found.lengths) == dataset.stats["episodes"]
    assert found.lengths.max() == dataset.stats["length_max"]
    assert found.returns.mean() == dataset.stats["return_mean"]
    assert found.lengths.max() == {"untimed": 200, "pen": 100}.get(kind, found.lengths.max())


@pytest.mark.parametrize("damage", ["group", "text", "rows", "flags"])
def test_a_listing_of_what_is_no_dataset(tmp_path, damage, capsys):
    """Catches: a traceback where loading has an error."""
    data = columns()
    if damage == "rows":
        data["observations"] = data["observations"][:-1]
    if damage == "flags":
        data["terminals"] = data["terminals"] + 2.5
    path = write(tmp_path / "x.hdf5", data)
    if damage in ("group", "text"):
        with h5py.File(path, "r+") as file:
            del file["observations"]
            if damage == "group":
                file.create_group("observations")
            else:
                file["observations"] = b"text"
    assert bench("list", path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and error.count("\n") == 1


def test_a_listing_reads_neither_observations_nor_actions(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bench.data.flat.read_array", _only("bench.data.flat.read_array", ("rewards", "t"))
    )
    found = outline(write(tmp_path / "x.hdf5", columns()))
    assert found.lengths.tolist() == [4, 3, 5]


def _only(place, keys):
    module, _, name = place.rpartition(".")
    read = getattr(importlib.import_module(module), name)

    def checked(source, group, key):
        assert key.startswith(keys), key
        return read(source, group, key)

    return checked


def test_a_listing_imports_no_torch_and_makes_no_environment():
    """Catches: seconds of imports before the first line."""
    code = (
        "import sys\nfrom bench.cli import main\nassert main(['data', 'list', 'lite/*']) == 0\n"
        "heavy = {'torch', 'tensordict', 'minari', 'gymnasium', 'mujoco', 'gymnasium_robotics',\n"
        "         'pandas', 'matplotlib', 'rich', 'requests', 'mlflow', 'rlobj'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={k: v for k, v in environment().items() if k != "BENCH_DATASETS"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lite/hopper/expert-v0" in done.stdout and "2873.3 (100.0)" in done.stdout


# ----------------------------------------------------------------------- ends that are assumed


def untimed(path, rows=300):
    data = {
        "observations": np.zeros((rows, 45), np.float32),
        "actions": np.zeros((rows, 24), np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": np.zeros(rows, bool),
    }
    return write(path, data, {"env_id": "AdroitHandPen-v1"})


def test_ends_are_assumed_at_d4rls_horizon(tmp_path):
    """Catches: the environment's limit of 200 where D4RL recorded pen with 100."""
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    with pytest.warns(DataWarning, match="3 episodes were ended after 100 steps"):
        dataset = load(untimed(tmp_path / "pen.hdf5"))
    assert dataset.horizon == 100 and dataset.stats["return_max"] == 100


def test_ends_are_assumed_at_the_cards_horizon(tmp_path, monkeypatch):
    """Catches: a card's horizon that counts for evaluations alone; a file's own that does not go
    before it."""
    root = tmp_path / "datasets"
    (root / "cards").mkdir(parents=True)
    (root / "cards" / "reference_scores.csv").write_text("dataset,random,expert,source\n")
    (root / "cards" / "toy.toml").write_text(
        '["toy/a-v0"]\nenv_id = "Pendulum-v1"\nfamily = "pendulum"\nlicence = "MIT"\n'
        'description = "x"\nfile = "a.hdf5"\nhorizon = 50\n'
    )
    monkeypatch.setenv("BENCH_DATASETS", str(root))
    data = without(columns((120,), "-"), "timeouts", "final_observations")
    for facts, steps in (({}, 50), ({"max_episode_steps": 60}, 60)):
        write(root / "a.hdf5", data, {"env_id": "Pendulum-v1", **facts})
        with pytest.warns(DataWarning, match=f"2 episodes were ended after {steps} steps"):
            assert load("toy/a-v0").horizon == 50


def test_real_files_without_their_timeouts(tmp_path):
    shared = os.environ.get("BENCH_SHARED")
    if not shared:
        pytest.skip("BENCH_SHARED names no folder of real data")
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    path = f"{shared}/data/dapg-pen-expert.hdf5"
    with h5py.File(path) as real:
        data = {key: real[key][()] for key in real if key != "timeouts"}
    bare = write(tmp_path / "pen.hdf5", data, {"env_id": "AdroitHandPen-v1"})
    with pytest.warns(DataWarning, match="500 episodes were ended after 100 steps"):
        assert load(bare).fingerprint == load(path).fingerprint
