"""What `bench data make` puts where loading looks for it, and whose code it says has trained it."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from bench.cli import main
from bench.data import DataWarning, cards, load, making, report, training
from bench.data.card import shipped_root
from bench.data.staging import staging
from bench.engine import cpu
from bench.errors import DataError
from bench.online import record
from bench.online.record import random_play
from bench.provenance import ROOT, _program, code_fingerprint
from bench.store import GroupLock, read_json

FACTS = 'env_id = "Pendulum-v1"\nfamily = "pendulum"\nlicence = "MIT"\ndescription = "x"\n'
MAKE = (
    'kind = "random"\ntransitions = 300\nfingerprint = "abc"\n'
    "return_mean = {mean}\ntolerance = 900\n"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets that are not in git; the card of toy/far has another return than comes out."""
    root = tmp_path / "datasets"
    (root / "cards").mkdir(parents=True)
    text = "".join(
        f'["{name}"]\n{FACTS}["{name}".recipe.make]\n{MAKE.format(mean=mean)}'
        for name, mean in (("toy/a", -1200), ("toy/far", 0))
    )
    text += f'["toy/both"]\n{FACTS}combine = ["toy/a", "toy/a"]\n'
    (root / "cards" / "toy.toml").write_text(text)
    shutil.copy(shipped_root() / "cards" / "reference_scores.csv", root / "cards")
    monkeypatch.setenv("BENCH_DATASETS", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def make(*words: object) -> int:
    return main(["data", "make", *map(str, words)])


def edit_card(root: Path, old: str, new: str) -> None:
    path = root / "cards" / "toy.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def place(root: Path, name: str = "a") -> Path:
    return root / "cache" / "made" / f"toy-{name}.hdf5"


@pytest.fixture
def held(root: Path) -> Path:
    """toy/a, made."""
    assert make("toy/a") == 0
    return place(root)


# ------------------------------------------------------------------------------------- judging


def test_a_set_that_is_not_in_git(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a card without a file that cannot be listed, made, or loaded by its id afterwards; a
    fingerprint of another machine that would forbid to use it, or that nobody compares."""
    with pytest.raises(DataError, match="run: bench data make toy/a"):
        load("toy/a")
    assert main(["data", "list"]) == 0
    assert capsys.readouterr().out.count("bench data make\n") == 3
    assert make("toy/a") == 0
    assert "within the tolerance of 900" in capsys.readouterr().out
    assert cards()["toy/a"].path == place(root)
    with pytest.warns(DataWarning, match=r"fingerprint: is .*says abc: not bit-equal.*own make"):
        dataset = load("toy/a")
    assert dataset.stats["transitions"] == 300
    assert [note for note in report(dataset)["notes"] if note.startswith("an own make")]
    with pytest.raises(DataError, match="make it anew: bench data make toy/a --force, or"):
        load("toy/a", strict=True)
    with pytest.warns(DataWarning, match="own make"):
        assert load("toy/both").stats["transitions"] == 600
    edit_card(root, '"abc"', f'"{dataset.fingerprint}"')
    dataset = load("toy/a", strict=True)  # without a warning
    assert not [note for note in report(dataset)["notes"] if "own make" in note]
    assert make("toy/a", "--force") == 0
    assert "bit-equal to the card" in capsys.readouterr().out


def test_a_set_that_is_not_the_cards_is_put_elsewhere(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a failed training that runs then load by the set's name."""
    assert make("toy/far") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {place(root, 'far')}: return_mean: outside the tolerance")
    assert said.err.count("\n") == 1 and "results/make/toy-far.hdf5" in said.out
    assert not place(root, "far").exists() and not place(root, "far").parent.exists()
    assert load("results/make/toy-far.hdf5").stats["transitions"] == 300  # nothing was lost
    assert make("toy/far", "--to", "mine.hdf5") == 1 and Path("mine.hdf5").exists()
    place(root, "far").parent.mkdir(parents=True)
    shutil.copy("mine.hdf5", place(root, "far"))
    with pytest.raises(DataError, match=r"far\.hdf5: return_mean: outside the tolerance"):
        load("toy/far")


def test_bit_equal_is_both_fingerprints(held: Path, root: Path) -> None:
    with h5py.File(held) as file:
        digests = {key: file.attrs[key] for key in ("fingerprint", "fingerprint_next")}
    edit_card(root, '"abc"', f'"{digests["fingerprint"]}"')
    made = making.make_dataset(cards()["toy/a"], root, print)
    assert (made.fingerprint, made.fingerprint_next) == tuple(digests.values())
    make = making.Make.of(cards()["toy/a"])
    assert "bit-equal to the card" in made.verdict(cards()["toy/a"], make)[1]
    edit_card(root, f"{FACTS}", f'{FACTS}fingerprint_next = "{"0" * 64}"\n')
    assert "not bit-equal" in made.verdict(cards()["toy/a"], make)[1]


# ---------------------------------------------------------------------------- replacing nothing


def test_what_is_there_already_is_not_made_again(
    held: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: hours of training anew, or a file replaced, because a command is repeated."""
    before = held.read_bytes()
    monkeypatch.setattr(making, "make_dataset", lambda *_: 1 / 0)
    assert make("toy/a") == 0
    said = capsys.readouterr().out
    assert f"is here already ({held}); --force makes it anew" in said and "tolerance" in said
    assert held.read_bytes() == before


@pytest.mark.parametrize("change", ["recipe", "damage", "reward", "nothing"])
def test_something_else_is_not_replaced_unasked(
    held: Path, root: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: data of an older card under its id, a damaged file that counts as made."""
    if change == "recipe":
        edit_card(root, "transitions = 300", "transitions = 301")
    elif change == "damage":
        held.write_bytes(held.read_bytes()[:-300])
    elif change == "nothing":
        held.write_bytes(b"")
    else:
        with h5py.File(held, "r+") as file:
            file["rewards"][7] += 1
    before = held.read_bytes()
    with pytest.raises(DataError, match=str(held)):
        load("toy/a")
    capsys.readouterr()
    assert make("toy/*") == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith(f"error: {held}") and "--force" in error
    assert held.read_bytes() == before
    assert Path("results/make/toy-far.hdf5").exists()  # the other one was made
    assert make("toy/a", "--force") == 0
    with pytest.warns(DataWarning, match="own make"):
        load("toy/a")


def test_a_changed_final_observation_of_a_made_set(held: Path) -> None:
    """Catches: a set without a fingerprint in its card that nothing protects."""
    with h5py.File(held, "r+") as file:
        file["final_observations"][0, 0] += 0.5
    with pytest.raises(DataError, match=f"{held}: fingerprint_next: is .*the file says"):
        load("toy/a")


def test_other_outcomes_in_the_card_do_not_make_another_recipe(held: Path, root: Path) -> None:
    """Catches: every set refused because a tolerance was mended, or a recipe learnt a new key."""
    with h5py.File(held, "r+") as file:
        recipe = json.loads(file.attrs["recipe"])
        assert recipe.pop("interval") == 5000
        file.attrs["recipe"] = json.dumps(recipe | {"old": 1})
    edit_card(root, "tolerance = 900", "tolerance = 901")
    with pytest.warns(DataWarning, match="own make"):
        load("toy/a")
    assert make("toy/a") == 0


# -------------------------------------------------------------------------------------- staging


@pytest.mark.parametrize("words", [["toy/a", "--force"], ["--force", "--env-id", "Pendulum-v1",
                                   "--kind", "random", "--transitions", 50]])  # fmt: skip
@pytest.mark.parametrize("fault", ["killed", "other data", "half a file"])
def test_what_fails_leaves_what_was_there(
    held: Path,
    words: list[Any],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches: a file in its place before it is whole and read back."""
    if "--env-id" in words:
        words = [*words, "--to", held]
    before, write = held.read_bytes(), making.write_made

    def faulty(made: Any, card: Any, path: Path) -> None:
        write(made, card, path)
        if fault == "killed":
            raise KeyboardInterrupt
        if fault == "half a file":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            with h5py.File(path, "r+") as file:
                file["final_observations"][0, 0] += 0.5
                del file.attrs["fingerprint_next"]

    monkeypatch.setattr(making, "write_made", faulty)
    if fault == "killed":
        with pytest.raises(KeyboardInterrupt):
            make(*words)
    else:
        assert make(*words) == 2
        error = capsys.readouterr().err
        assert ("holds other data" if fault == "other data" else "damaged") in error
    assert held.read_bytes() == before
    monkeypatch.setattr(making, "write_made", write)
    assert make(*words) == 0
    assert not list(held.parent.glob(".*"))


def test_actions_that_are_clipped_on_the_way(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a set refused as damaged because an action was rounded past its bound."""

    def beyond(*words: Any) -> dict[str, Any]:
        seen = random_play(*words)
        seen["action"][3] = 2.0001
        return seen

    monkeypatch.setattr(record, "random_play", beyond)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert make("toy/a") == 0
    assert "1 of 300 entries (0.3 %) lie outside [-2, 2]" in capsys.readouterr().err
    with pytest.warns(DataWarning, match="own make"):
        assert load("toy/a").stats["clipped_entries"] == 0


def test_two_at_once_wait_for_each_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: two processes that write into one staging folder."""
    codes: list[int] = []
    other = threading.Thread(target=lambda: codes.append(make("toy/a")))
    with staging(place(root), lambda: None):
        other.start()
        other.join(5)
        assert other.is_alive() and not place(root).exists()
        assert "waiting for another process" in capsys.readouterr().out
    other.join(60)
    assert codes == [0] and place(root).exists()


# --------------------------------------------------------------------- whose code has trained it

TRAIN = ("--env-id", "CartPole-v1", "--kind", "replay", "--algo", "dqn", "--interval", 100,
         "--set", "hidden=8,8", "batch_size=8", "start_steps=100")  # fmt: skip


@pytest.fixture
def settings() -> Any:
    """Training's settings of the process, taken back afterwards."""
    threads = torch.get_num_threads()
    cpu.prepare()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")


def trained(tmp_path: Path, steps: int, code: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the file says of its training, by a checkout with that code."""
    today = dict.fromkeys(training.LEG, code * 40)
    monkeypatch.setattr(training, "_today", lambda run: today)
    out = tmp_path / f"{steps}{code}.hdf5"
    assert make(*TRAIN, "--steps", steps, "--to", out, "--out", tmp_path) == 0
    with h5py.File(out) as file:
        return [leg["code"][0] for leg in json.loads(file.attrs["training"])]


def test_training_that_goes_on_with_other_code_says_so(
    settings: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches: a set of mixed code that nobody can tell from others."""

    def said() -> list[str]:
        return [line for line in capsys.readouterr().out.splitlines() if "warning" in line]

    assert trained(tmp_path, 200, "a", monkeypatch) == ["a"] and said() == []
    (folder,) = (tmp_path / "make").iterdir()
    config = read_json(folder / "config.json")
    assert config["algorithm"] == "dqn" and config["hyperparameters"]["hidden"] == [8, 8]
    assert trained(tmp_path, 400, "a", monkeypatch) == ["a"] and said() == []
    assert trained(tmp_path, 300, "b", monkeypatch) == ["a"]  # nothing is trained
    (line,) = said()
    assert f"warning: {folder} was trained by other code (commit aaaaaaaaaa)" in line
    assert trained(tmp_path, 600, "b", monkeypatch) == ["a", "b"]
    (line,) = said()
    assert "goes on with other code than it was trained with (commit aaaaaaaaaa)" in line
    assert "another --out trains it anew" in line
    assert trained(tmp_path, 800, "b", monkeypatch) == ["a", "b"] and len(said()) == 1
    (folder / "config.json").unlink()  # as older versions left it
    assert trained(tmp_path, 1000, "b", monkeypatch) == ["u", "b"]
    assert "(commit unknown)" in said()[0]


def test_the_program_that_trains_is_the_collectors() -> None:
    """Catches: a fingerprint of the offline engine, which no collector runs."""
    files = {f.relative_to(ROOT).as_posix() for f in _program(ROOT, "bench.online.collect")}
    assert {"bench/online/collect.py", "bench/engine/trainer.py", "bench/evaluate.py"} <= files
    assert "bench/engine/worker.py" not in files
    found = code_fingerprint("sac", program="bench.online.collect")
    assert found not in (
        code_fingerprint("sac"),
        code_fingerprint("dqn", program="bench.online.collect"),
    )


def test_two_processes_do_not_train_into_one_folder(
    settings: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(*TRAIN, "--steps", 150, "--to", tmp_path / "x.hdf5", "--out", tmp_path) == 0
    (folder,) = (tmp_path / "make").iterdir()
    code = code_fingerprint("dqn", program="bench.online.collect")
    assert read_json(folder / "config.json")["code"] == code
    with GroupLock(folder):
        words = [*TRAIN, "--steps", 150, "--to", tmp_path / "y.hdf5", "--out", tmp_path]
        assert make(*words) == 2
        assert "is being trained by" in capsys.readouterr().err
    assert not (tmp_path / "y.hdf5").exists()
