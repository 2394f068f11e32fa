"""Minari folders: reading, exporting, and the same data in both formats."""

import json
import os

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from bench.data import DataWarning, export_minari, load, names, write_flat
from bench.errors import DataError
from tests.bench.data_files import (
    CARTPOLE,
    assert_same,
    columns,
    discrete,
    no_environments,
    without,
    write,
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of local Minari datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def flat(tmp_path, data=None, attributes=None):
    return load(write(tmp_path / "flat.hdf5", columns() if data is None else data, attributes))


def edit_metadata(folder, **changes):
    file = folder / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CASES = {
    "continuous": (columns(), None),
    "discrete": (discrete(), CARTPOLE),
    "twelve episodes": (columns((3,) * 12, "X" * 12), None),  # episode_10 sorts before episode_2
    "unfinished": (columns(flags="XT-"), None),
    "episodes without flags": (
        columns(flags="--X") | {"episode_lengths": np.array([4, 3, 5])}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_flat_to_minari_to_flat_is_bit_equal(tmp_path, root, case):
    first = flat(tmp_path, *CASES[case])
    folder = export_minari(first, "mine/small-v0", root)
    middle = load("mine/small-v0")
    write_flat(tmp_path / "back.hdf5", middle.transitions, env_id=middle.env_id,
               max_episode_steps=middle.horizon)  # fmt: skip
    last = load(str(tmp_path / "back.hdf5"))
    assert_same(first.transitions, middle.transitions)
    assert_same(first.transitions, last.transitions)
    assert first.fingerprint == middle.fingerprint == last.fingerprint
    assert (middle.env_id, middle.horizon) == (first.env_id, 200)
    assert middle.name == "mine/small-v0" and middle.stats["converted_arrays"] == 0
    assert {p.name for p in root.iterdir()} == {"mine"} and folder == root / "mine" / "small-v0"


def test_minaris_own_reader_agrees(tmp_path, root):
    dataset = flat(tmp_path)
    export_minari(dataset, "mine/small-v0", root)
    theirs = minari.load_dataset("mine/small-v0")
    td = dataset.transitions
    assert theirs.total_episodes == 3 and theirs.total_steps == 12
    for number, episode in enumerate(theirs.iterate_episodes()):
        rows = td["episode"] == number
        assert np.array_equal(episode.observations[:-1], td["observation"][rows])
        assert np.array_equal(episode.observations[1:], td["next", "observation"][rows])
        assert np.array_equal(episode.actions, td["action"][rows])
        assert np.array_equal(episode.rewards, td["next", "reward"][rows, 0])
        assert np.array_equal(episode.terminations, td["next", "terminated"][rows, 0])
        assert np.array_equal(episode.truncations, td["next", "truncated"][rows, 0])
    assert theirs.env_spec.id == "Pendulum-v1" and theirs.env_spec.max_episode_steps == 200


def native(dataset_id="theirs/set-v0", low=-1.0, **changes):
    """A dataset as Minari users make one: lists, float64 rewards, no environment."""
    data = columns()
    buffers = []
    for number, (start, stop) in enumerate([(0, 4), (4, 7), (7, 12)]):
        observations = np.append(
            data["observations"][start:stop], data["final_observations"][[number]], axis=0
        )
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=observations,
                actions=data["actions"][start:stop] / 2,
                rewards=[float(r) for r in data["rewards"][start:stop]],
                terminations=[bool(f) for f in data["terminals"][start:stop]],
                truncations=[bool(f) for f in data["timeouts"][start:stop]],
            )
        )
    options = {
        "observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "action_space": spaces.Box(low, 1.0, (1,), np.float32),
    }
    with pytest.warns(UserWarning):  # Minari asks for an author
        minari.create_dataset_from_buffers(dataset_id, buffers, **(options | changes))


def test_a_set_made_by_others(root):
    native()
    with pytest.warns(DataWarning, match="names no environment"):
        dataset = load("theirs/set-v0")
    data = columns()
    assert np.array_equal(dataset.transitions["observation"], data["observations"])
    assert np.array_equal(
        dataset.transitions["next", "observation"][[3, 6, 11]], data["final_observations"]
    )
    assert np.array_equal(dataset.transitions["next", "reward"][:, 0], data["rewards"])
    assert dataset.transitions["valid_next"].all()
    assert dataset.stats["converted_arrays"] == 1  # the float64 rewards
    assert dataset.env_id is None and dataset.action_low.tolist() == [-1.0]


def test_the_recorded_action_space_gives_the_bounds_without_an_environment(root):
    native(low=-0.25)
    with pytest.warns(DataWarning) as caught:
        dataset = load("theirs/set-v0")
    assert "lie outside [-0.25, 1] and were clipped" in str(caught[1].message)
    assert dataset.transitions["action"].min() == -0.25


def test_the_environment_comes_from_the_specification(root):
    native(env="Pendulum-v1")
    dataset = load("theirs/set-v0")
    assert (dataset.env_id, dataset.horizon) == ("Pendulum-v1", 200)


def test_options_of_the_environment_are_named(root):
    spec = gymnasium.make("Pendulum-v1", g=9.0).spec
    native(env=spec)
    with pytest.warns(DataWarning, match=r"options \{'g': 9.0\}; evaluation uses"):
        load("theirs/set-v0")


def test_ids_and_paths(tmp_path, root):
    dataset = flat(tmp_path)
    folder = export_minari(dataset, "mine/deep/small-v0", root)
    assert "mine/deep/small-v0" in names()
    by_path = load(str(folder))
    assert by_path.name == f"mine-deep-small-v0-{dataset.fingerprint[:8]}"
    assert_same(by_path.transitions, load(str(folder / "data")).transitions)


def test_unknown_last_observations_survive_an_export(tmp_path, root):
    dataset = flat(tmp_path, without(columns(flags="XT-"), "final_observations"))
    with pytest.warns(DataWarning, match="last observation of 2 episodes is unknown"):
        export_minari(dataset, "mine/small-v0", root)
    assert_same(dataset.transitions, load("mine/small-v0").transitions)


def test_an_environment_that_cannot_be_made_keeps_its_name(tmp_path, root, monkeypatch):
    no_environments(monkeypatch)
    attributes = {"env_id": "AdroitHandPen-v1", "max_episode_steps": 100}
    data = columns()
    data["actions"] /= 2
    with pytest.warns(DataWarning, match="install gymnasium-robotics"):
        dataset = flat(tmp_path, data, attributes)
        export_minari(dataset, "mine/pen-v0", root)
        again = load("mine/pen-v0")
    assert again.recorded_env_id == "AdroitHandPen-v1" and again.horizon == 100
    assert again.reference == dataset.reference and "Minari" in again.reference_source


def test_export_does_not_replace_a_set_and_leaves_the_environment_alone(tmp_path, root):
    dataset = flat(tmp_path)
    before = os.environ["MINARI_DATASETS_PATH"]
    export_minari(dataset, "mine/small-v0", tmp_path / "elsewhere")
    assert os.environ["MINARI_DATASETS_PATH"] == before and not root.exists()
    with pytest.raises(DataError, match="small-v0: exists already"):
        export_minari(dataset, "mine/small-v0", tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["no spaces allowed-v0", "../outside-v0", "/tmp/absolute-v0"])
def test_export_wants_a_minari_id(tmp_path, root, name):
    with pytest.raises(DataError, match="is no Minari id"):
        export_minari(flat(tmp_path), name, root)


def test_next_observations_that_minari_cannot_hold(tmp_path, root):
    data = without(columns(), "final_observations")
    data["next_observations"] = np.roll(data["observations"], -1, axis=0) + 1
    with pytest.raises(DataError, match="next_observations: 9 of them differ"):
        export_minari(flat(tmp_path, data), "mine/small-v0", root)


@pytest.fixture
def folder(tmp_path, root):
    return export_minari(flat(tmp_path), "mine/small-v0", root)


def test_other_data_formats(folder):
    edit_metadata(folder, data_format="arrow")
    with pytest.raises(DataError, match="data_format: is 'arrow', and only 'hdf5'"):
        load("mine/small-v0")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_metadata(folder, text):
    (folder / "data" / "metadata.json").write_text(text)
    with pytest.raises(DataError, match=r"metadata\.json"):
        load("mine/small-v0")


def test_damaged_specification(folder):
    edit_metadata(folder, env_spec="{")
    with pytest.raises(DataError, match="env_spec: is no JSON object"):
        load("mine/small-v0")


def test_a_missing_key_names_its_episode(folder):
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/truncations"]
    with pytest.raises(DataError, match="episode_1/truncations: missing key"):
        load("mine/small-v0")


def test_an_episode_without_its_last_observation(folder):
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_2/observations"].resize((5, 3))
    with pytest.raises(DataError, match=r"episode_2/observations: has 5 rows for 5 .* needs 6"):
        load("mine/small-v0")


def test_a_main_file_cut_short(folder):
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"main_data\.hdf5: is HDF5, but damaged or cut short"):
        load("mine/small-v0")


@pytest.mark.parametrize(
    ("lost", "message"),
    [(1, "episode_1: is missing"), (2, "total_episodes: is 3 and the file holds 2")],
)
def test_episodes_that_are_gone_are_not_passed_over(folder, lost, message):
    """Catches: a set that loads with the episodes that happen to be left."""
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_{lost}"]
    with pytest.raises(DataError, match=message):
        load("mine/small-v0")


def test_a_count_of_steps_that_the_file_does_not_hold(folder):
    edit_metadata(folder, total_steps=13)
    with pytest.raises(DataError, match="total_steps: is 13 and the file holds 12"):
        load("mine/small-v0")
