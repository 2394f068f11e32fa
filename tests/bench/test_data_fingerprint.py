"""The fingerprint stands for the data and for nothing else."""

import hashlib

import numpy as np
import pytest
import torch

from bench.data import fingerprint, load
from bench.data.dataset import fingerprint_next
from tests.bench.data_files import columns, discrete, without, write


@pytest.fixture
def transitions(tmp_path):
    return load(write(tmp_path / "a.hdf5", columns())).transitions


def test_the_definition_does_not_drift(tmp_path):
    """Recorded results name fingerprints: the same data must always have this one."""
    data = columns()
    data["observations"] = np.arange(36, dtype=np.float32).reshape(12, 3)
    data["actions"] = np.linspace(-2, 2, 12, dtype=np.float32)[:, None]
    data["rewards"] = -np.arange(12, dtype=np.float32)
    found = load(write(tmp_path / "a.hdf5", data)).fingerprint
    episode = np.repeat(np.arange(3, dtype=np.int64), [4, 3, 5])
    text = b"".join(
        [
            b"observations float32 (12, 3)\n", data["observations"].tobytes(),
            b"actions float32 (12, 1)\n", data["actions"].tobytes(),
            b"rewards float32 (12,)\n", data["rewards"].tobytes(),
            b"terminated bool (12,)\n", data["terminals"].tobytes(),
            b"truncated bool (12,)\n", data["timeouts"].tobytes(),
            b"episode int64 (12,)\n", episode.tobytes(),
        ]
    )  # fmt: skip
    assert found == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "key",
    ["observation", "action", ("next", "reward"), ("next", "terminated"), ("next", "truncated"),
     "episode"],
)  # fmt: skip
def test_one_changed_value_changes_it(transitions, key):
    before = fingerprint(transitions)
    values = transitions[key].view(-1)
    values[5] = ~values[5] if values.dtype == torch.bool else values[5] + 1
    assert fingerprint(transitions) != before


@pytest.mark.parametrize("row", [3, 5, 11])  # the end of an episode, inside one, the last
@pytest.mark.parametrize("key", [("next", "observation"), "valid_next"])
def test_a_changed_next_observation_changes_the_other_one_alone(transitions, key, row):
    """Catches: a digest of the last rows only, of some columns, or without where they are known."""
    before = fingerprint(transitions), fingerprint_next(transitions)
    if key == "valid_next":
        transitions[key][row] = False
    else:
        transitions[key].view(torch.int32)[row, 2] ^= 1  # one bit
    assert fingerprint(transitions) == before[0] and fingerprint_next(transitions) != before[1]


def test_the_definition_of_the_other_one_does_not_drift(tmp_path):
    """Cards and runs name it: the same data must always have this one."""
    data = columns()
    found = load(write(tmp_path / "a.hdf5", without(data, "final_observations")))
    seen, ends = data["observations"], [3, 6, 11]
    following = np.roll(seen, -1, axis=0)
    following[ends] = seen[ends]  # unknown: a copy stands in
    valid = np.ones(12, bool)
    valid[[3, 11]] = False  # behind a terminal nothing is missing
    text = b"next_observations float32 (12, 3)\n" + following.tobytes()
    text += b"valid_next bool (12,)\n" + valid.tobytes()
    assert found.fingerprint_next == hashlib.sha256(text).hexdigest()


def test_rows_in_another_order_change_it(transitions):
    before = fingerprint(transitions)
    transitions["next", "reward"] = transitions["next", "reward"].flip(0)
    assert fingerprint(transitions) != before


def test_what_depends_on_the_format_does_not_change_it(tmp_path):
    data = columns()
    known = load(write(tmp_path / "a.hdf5", data))
    unknown = load(write(tmp_path / "b.hdf5", without(data, "final_observations")))
    wide = load(write(tmp_path / "c.hdf5", data | {"rewards": data["rewards"].astype(float)}))
    assert known.fingerprint == unknown.fingerprint == wide.fingerprint
    assert known.fingerprint_next == wide.fingerprint_next != unknown.fingerprint_next


def test_integer_and_float_actions_of_a_discrete_environment_agree(tmp_path):
    data, attributes = discrete(), {"env_id": "CartPole-v1"}
    a = load(write(tmp_path / "a.hdf5", data, attributes))
    as_float = data | {"actions": data["actions"].astype(np.float32)[:, None]}
    assert a.fingerprint == load(write(tmp_path / "b.hdf5", as_float, attributes)).fingerprint
