"""The cards of published datasets: complete, as their sources say, honest about the rest."""

import csv
import fnmatch
import importlib.util
import os
import re
from pathlib import Path

import gymnasium
import pytest

from bench.data import cards, data_root, envs, load
from bench.data.card import EXTRAS, Space
from bench.data.reference import D4RL_HORIZONS
from bench.errors import ConfigError, DataError
from tests.bench.data_files import PENDULUM, columns, write

ALL = {name: card for name, card in cards().items() if card.published}
SHARED = os.environ.get("BENCH_SHARED")
FAMILIES = {
    "d4rl/": 44, "mujoco/": 28, "D4RL/pointmaze/": 8, "D4RL/antmaze/": 6, "D4RL/kitchen/": 3,
    "D4RL/minigrid/": 2, "atari/": 10,
    **{f"D4RL/{task}/": 3 for task in ("pen", "door", "hammer", "relocate")},
}  # fmt: skip


def test_every_family_is_there():
    found = {prefix: sum(name.startswith(prefix) for name in ALL) for prefix in FAMILIES}
    assert found == FAMILIES and len(ALL) == sum(FAMILIES.values()) >= 60


def test_licences_say_where_they_were_read_or_looked_for():
    """D4RL states one for all its sets, Minari none for any; what Minari took from D4RL says so."""
    stated = {name for name, card in ALL.items() if card.licence == "CC-BY-4.0"}
    silent = {name for name, card in ALL.items() if card.licence == "not stated"}
    assert stated == {name for name in ALL if name.startswith("d4rl/")} == ALL.keys() - silent
    assert all("https://" in card.licence_source for card in ALL.values())
    taken = {name for name in silent if "CC-BY-4.0" in ALL[name].licence_source}
    tasks = ("pen", "door", "hammer", "relocate", "minigrid")
    assert taken == {name for name in silent if name.split("/")[1] in tasks}


def test_what_papers_do_names_the_data_that_they_used():
    """No paper's protocol is of a Minari set: where one is given it says whose data it was for."""
    for name, card in ALL.items():
        lines = card.preprocessing
        assert lines and not any("unknown" in text for text in lines.values()), name
        foreign = "these papers" in lines or "no paper" in lines
        assert foreign == bool(card.minari), name
        assert len(lines) > 1 or "no paper" in lines, name
    tasks = {name.split("/")[1] for name in ALL if "no paper" in ALL[name].preprocessing}
    assert tasks == {"minigrid", "humanoid", "humanoidstandup", "inverteddoublependulum",
                     "invertedpendulum", "pusher", "reacher", "swimmer"}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_card_is_complete(name):
    card = ALL[name]
    assert card.recorded_in and card.preprocessing and card.not_comparable_with and card.horizon
    assert bool(card.reference) != bool(card.no_reference)
    assert card.family == envs.family(card.env_id)
    for space in (card.observation, card.action):
        for part in leaves(space):
            assert part.n or part.shape, name
    assert not any(fnmatch.fnmatchcase(name, other) for other in card.not_comparable_with)
    assert (card.transitions is None) == (card.episodes is None) == (card.url is not None)


def leaves(space: Space):
    return (
        [leaf for part in space.keys.values() for leaf in leaves(part)] if space.keys else [space]
    )


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("d4rl/")])
def test_d4rl_files_and_references(name):
    """Catches: a copied card with another set's address or scores."""
    card, short = ALL[name], name.removeprefix("d4rl/")
    with open(data_root() / "cards" / "reference_scores.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["dataset"] == name)
    assert (card.reference.random, card.reference.expert) == (
        float(row["random"]), float(row["expert"]),
    )  # fmt: skip
    assert card.url.startswith("http://rail.eecs.berkeley.edu/datasets/offline_rl/")
    assert card.url.endswith(".hdf5") and card.path.name == card.url.rpartition("/")[2]
    if "antmaze" not in name and "kitchen" not in name:
        words = short.replace("maze2d-open", "maze2d-open-sparse") if "dense" not in name else short
        plain = re.sub(r"-v0$", "", words).replace("_", "-").removesuffix("-v0")
        found = card.path.stem.replace("_", "-")
        assert set(plain.split("-")) <= {*found.split("-"), "v0"}, (plain, found)
    assert card.horizon == D4RL_HORIZONS.get(card.family, card.horizon)


def test_addresses_are_different():
    assert len({card.url for card in ALL.values() if card.url}) == FAMILIES["d4rl/"]
    assert len({card.path for card in ALL.values() if card.url}) == FAMILIES["d4rl/"]


@pytest.mark.skipif(not SHARED, reason="BENCH_SHARED names no folder with Minari's catalogue")
@pytest.mark.parametrize("name", [name for name, card in ALL.items() if card.minari])
def test_minari_sets_are_those_of_the_catalogue(name):
    with open(Path(SHARED) / "papers" / "minari_catalogue.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["id"] == name)
    card = ALL[name]
    recorded = row["env"].removesuffix("-v1")
    assert card.minari == name
    assert card.env_id == row["env"] or card.env_id.startswith(f"bench/{recorded}-")
    assert row["env"] in card.recorded_in or "atari" in name
    assert (card.transitions, card.episodes) == (int(row["steps"]), int(row["episodes"]))
    assert row["minari_version"] in card.recorded_in


@pytest.mark.parametrize("env_id", sorted({card.env_id for card in ALL.values()}))
def test_environments_exist_and_have_the_spaces_of_the_cards(env_id):
    """Where the package is installed; elsewhere the card says which extra brings it."""
    of_it = [card for card in ALL.values() if card.env_id == env_id]
    extras = {card.requires for card in of_it}
    assert len(extras) == 1
    extra = extras.pop()
    if extra and not importlib.util.find_spec(EXTRAS[extra]):
        pytest.skip(f"needs the extra {extra}")
    if env_id.startswith(("ALE/", "MiniGrid-")):
        envs.register(env_id)
        assert gymnasium.spec(env_id)
        return
    info = envs.describe(env_id)
    for card in of_it:
        if card.not_evaluated:
            continue
        width = sum(part.shape[0] for part in leaves(card.observation))
        assert info.observation_width == width, card.id
        assert info.actions.low.shape == card.action.shape
        assert info.actions.low.min() == pytest.approx(card.action.low, abs=1e-6)
        assert info.actions.high.max() == pytest.approx(card.action.high, abs=1e-6)


PUBLISHED = """
["toy/{name}-v0"]
{source}
env_id = "Pendulum-v1"
family = "pendulum"
licence = "MIT"
description = "A test."
recorded_in = "Pendulum-v1"
horizon = 200
observation = {{ shape = [3], dtype = "float32" }}
action = {{ shape = [1], dtype = "float32", low = -2.0, high = 2.0 }}
preprocessing = {{ all = "nothing" }}
not_comparable_with = []
no_reference = "a test"
"""
URL = 'url = "http://host/a.hdf5"'


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "datasets"
    (root / "cards").mkdir(parents=True)
    (root / "cards" / "reference_scores.csv").write_text("dataset,random,expert,source\n")
    monkeypatch.setenv("BENCH_DATASETS", str(root))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    return root


def card(root, change=lambda text: text, source=URL):
    (root / "cards" / "a.toml").write_text(change(PUBLISHED.format(name="a", source=source)))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("horizon = 200\n", "", "horizon: missing key"),
        ('recorded_in = "Pendulum-v1"\n', "", "recorded_in: missing key"),
        ('no_reference = "a test"\n', "", "reference: give it, or no_reference"),
        ('url = "http://host/a.hdf5"', 'url = "ftp://host/a"', "url: 'ftp://host/a' names no file"),
        ('url = "http://host/a.hdf5"', 'url = "http://host/a/"', "url: .* names no file"),
        ("[3]", "[0]", "observation: shape: sizes must be"),
        ("shape = [1], dtype", "width = [1], dtype", "action: width: unknown key"),
        ('dtype = "float32", low', "low", "action: dtype: missing key"),
        ('{ all = "nothing" }', "{ all = 1 }", "preprocessing: .* must map names to texts"),
        ('"a test"\n', '"a test"\nrequires = "gym"\n', "requires: must be one of robotics"),
        ('"a test"\n', '"a test"\ncautions = [1]\n', "cautions: .* must be a list of texts"),
        ('"a test"\n', '"a test"\nepisodes = 0\n', "episodes: must be at least 1"),
    ],
)
def test_bad_published_cards_name_the_key(root, old, new, text):
    def change(whole):
        assert old in whole
        return whole.replace(old, new)

    card(root, change)
    with pytest.raises(ConfigError, match=rf"a\.toml: toy/a-v0: {text}"):
        cards()


def test_a_published_set_that_is_not_here_says_how_to_get_it(root):
    card(root)
    with pytest.raises(
        DataError, match=r"cache/d4rl/a\.hdf5: .*not here; .*bench data get toy/a-v0"
    ):
        load("toy/a-v0")
    card(root, source='minari = "toy/a-v0"')
    with pytest.raises(DataError, match=r"cache/minari/toy/a-v0: .*bench data get toy/a-v0"):
        load("toy/a-v0")


def test_counts_that_differ_from_the_card(root):
    card(root, lambda text: text + "transitions = 13\nepisodes = 3\n")
    write(root / "cache" / "d4rl" / "a.hdf5", columns(), PENDULUM)
    with pytest.warns(match="transitions: has 12 where the card of toy/a-v0 says 13"):
        load("toy/a-v0")
    with pytest.raises(DataError, match=r"transitions: has 12 .*leave out --strict"):
        load("toy/a-v0", strict=True)


def test_sets_that_cannot_be_evaluated_keep_the_cards_bounds(root):
    """Catches: an environment that is made although its scores would mean nothing."""
    card(root, lambda text: text + 'not_evaluated = "the goal moved"\n')
    data = columns()
    data["actions"] = data["actions"].clip(-0.5, 0.5)
    write(root / "cache" / "d4rl" / "a.hdf5", data, {})
    with pytest.warns(match="cannot be evaluated: the goal moved"):
        dataset = load("toy/a-v0")
    assert dataset.env_id is None and dataset.action_high.tolist() == [2.0]
    assert dataset.recorded_env_id == "Pendulum-v1" and dataset.unit == "return"
    assert load("toy/a-v0", env_id="Pendulum-v1").env_id == "Pendulum-v1"  # as somebody asked for
