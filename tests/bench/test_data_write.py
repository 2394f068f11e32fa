"""Flat files that we write: compressed, with provenance, and bit for bit what they were."""

import h5py
import numpy as np
import pytest

from bench.data import load, write_flat
from tests.bench.data_files import (
    CARTPOLE,
    PENDULUM,
    assert_same,
    columns,
    discrete,
    without,
    write,
)


def broken(data):
    following = np.roll(data["observations"], -1, axis=0)
    following[1] = 3
    return without(data, "final_observations") | {"next_observations": following}


ROUND_TRIPS = {
    "known finals": (columns(), PENDULUM),
    "unknown finals": (without(columns(flags="XT-"), "final_observations"), PENDULUM),
    "own next observations": (broken(columns()), PENDULUM),
    "both flags": (columns(flags="BTX"), PENDULUM),
    "episodes without flags": (
        columns(flags="--X") | {"episode_lengths": np.array([4, 3, 5])}, PENDULUM,
    ),
    "discrete": (discrete(), CARTPOLE),
    "one transition": (columns((1,), "T"), PENDULUM),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_written_files_read_back_bit_for_bit(tmp_path, case):
    data, attributes = ROUND_TRIPS[case]
    before = load(write(tmp_path / "a.hdf5", data, attributes))
    limit = attributes["max_episode_steps"]
    for name in ("b.hdf5", "c.hdf5"):
        write_flat(tmp_path / name, before.transitions, env_id=before.env_id,
                   max_episode_steps=limit, attributes={"made_by": "a test"})  # fmt: skip
    after = load(str(tmp_path / "b.hdf5"))
    assert_same(before.transitions, after.transitions)
    assert before.fingerprint == after.fingerprint
    assert (after.env_id, after.horizon) == (before.env_id, limit)
    assert (tmp_path / "b.hdf5").read_bytes() == (tmp_path / "c.hdf5").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.hdf5", "b.hdf5", "c.hdf5"}


def test_written_files_are_compressed_and_hold_provenance(tmp_path):
    dataset = load(write(tmp_path / "a.hdf5", columns((3000,), "X")))
    write_flat(tmp_path / "b.hdf5", dataset.transitions, env_id="Pendulum-v1",
               attributes={"made_by": "a test"})  # fmt: skip
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert file.attrs["made_by"] == "a test" and "max_episode_steps" not in file.attrs
        assert set(file) == {"observations", "actions", "rewards", "terminals", "timeouts",
                             "final_observations"}  # fmt: skip
        for key in file:
            assert (file[key].compression_opts, file[key].shuffle) == (9, True)
        assert file["observations"].dtype == np.float32


def test_an_unfinished_episode_needs_no_extra_key(tmp_path):
    dataset = load(write(tmp_path / "a.hdf5", columns(flags="XT-")))
    write_flat(tmp_path / "b.hdf5", dataset.transitions, env_id="Pendulum-v1")
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert "episode_lengths" not in file
