"""Data whose episodes are not such as evaluations have: whose score is shown, and where."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.data import cards, combine, data_root, load, report
from bench.data.card import Behaviour
from bench.data.render import render
from bench.errors import ConfigError
from bench.plan import Request, make_plan
from tests.bench.data_files import columns, write

CARD = """
["toy/{name}-v0"]
env_id = "Pendulum-v1"
family = "pendulum"
licence = "MIT"
description = "A test."
file = "embedded/a.hdf5"
reference = {{ random = -1000.0, expert = -200.0, source = "a test" }}
behaviour = {behaviour}
"""
MEASURED = '{ note = "they stop early", mean_return = -400.0, source = "ten episodes" }'
UNMEASURED = '{ note = "they stop early" }'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "datasets"
    (root / "cards").mkdir(parents=True)
    shutil.copy(data_root() / "cards" / "reference_scores.csv", root / "cards")
    write(root / "embedded" / "a.hdf5", columns())
    monkeypatch.setenv("BENCH_DATASETS", str(root))
    text = CARD.format(name="a", behaviour=MEASURED) + CARD.format(name="b", behaviour=UNMEASURED)
    (root / "cards" / "toy.toml").write_text(text)
    return root


def test_the_score_is_of_the_behaviour_and_not_of_the_data(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a return of the data put on the scale of evaluations, in the listing, in the report
    or in its JSON; a behaviour that nobody measured shown with a score."""
    mean = load("toy/a-v0").stats["return_mean"]
    assert (load("toy/a-v0").behaviour_return, load("toy/b-v0").behaviour_return) == (-400.0, None)
    assert load("toy/a-v0", env_id="Pendulum-v1").behaviour_return == -400.0
    assert load(str(root / "embedded" / "a.hdf5")).behaviour_return == mean
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{mean:.1f} (evaluated 75.0)" in lines[1]
    assert f"{mean:.1f} " in lines[2] and "(" not in lines[2]
    measured, unmeasured = (report(load(f"toy/{n}-v0")) for n in "ab")
    assert json.loads(json.dumps(measured))["behaviour"]["mean_return"] == -400.0
    scores = [r["normalized_behaviour_score"] for r in (measured, unmeasured)]
    assert scores == [75.0, None]
    assert measured["normalized_score_within_horizon"] is None
    texts = [render(r) for r in (measured, unmeasured)]
    assert all("they stop early" in text and "the data scores" not in text for text in texts)
    assert "evaluations return -400.0, which scores 75.0: ten episodes" in texts[0]
    assert "was not measured" in texts[1]


def test_runs_note_what_the_behaviour_scores(root: Path, tmp_path: Path) -> None:
    """What tables and curves show as the dataset itself."""
    for name, expected in (("a", -400.0), ("b", None)):
        request = Request(("bc",), (f"toy/{name}-v0",), out=tmp_path / "out", steps=10)
        task = make_plan(request, 1).tasks[0]
        assert task.record["data"]["behaviour_return"] == expected


def test_combined_behaviours(root: Path) -> None:
    a, b = load("toy/a-v0"), load("toy/b-v0")
    assert combine([a, a]).behaviour == a.behaviour
    assert combine([a, b]).behaviour_return is None
    assert combine([a, replace(a, behaviour=None)]).behaviour_return is None
    plain = replace(a, behaviour=None)
    assert combine([plain, plain]).behaviour_return == a.stats["return_mean"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("{ mean_return = 1.0 }", "note: missing key"),
        ('{ note = "a", mean_return = 1.0 }', "mean_return and source belong together"),
        ('{ note = "a", source = "b" }', "mean_return and source belong together"),
        ('{ note = "a", score = 1.0 }', "score: unknown key"),
    ],
)
def test_bad_tables_name_the_key(root: Path, table: str, text: str) -> None:
    (root / "cards" / "toy.toml").write_text(CARD.format(name="a", behaviour=table))
    with pytest.raises(ConfigError, match=rf"toy\.toml: toy/a-v0: behaviour: {text}"):
        cards()


def test_who_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mazes: their data is cut where a goal is reached, or walks to others than the one that pays.
    The scores of all that can be evaluated were measured and lie near the controller's 100."""
    monkeypatch.delenv("BENCH_DATASETS", raising=False)
    found: dict[str, Any] = {name: card for name, card in cards().items() if card.behaviour}
    assert found.keys() == {name for name, card in cards().items() if card.family == "maze2d"}
    for name, card in found.items():
        behaviour: Behaviour = card.behaviour
        if card.not_evaluated:
            assert behaviour.mean_return is None, name
            continue
        ends = card.reference
        score = 100 * (behaviour.mean_return - ends.random) / (ends.expert - ends.random)
        assert 97 < score < 101, name
