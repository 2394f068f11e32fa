"""``bench evaluate``: the policies of runs, as training evaluated them and elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.engine.best import Best
from bench.engine.evaluation import Evaluation
from bench.errors import ConfigError, RunError
from bench.evaluate import MOST_EPISODES, Evaluator, Rollouts
from bench.store import load_checkpoint, save_checkpoint
from bench.trained import evaluate
from bench.trained.commands import Meter
from bench.trained.evaluate import How, file_name, how_of, record, roll_out
from bench.trained.run import find_runs, open_run, read_scores
from tests.bench.runs import bench, pendulum_file, results, small_run
from tests.bench.test_cli import fails
from tests.bench.trained_runs import EPISODES, SMALL, STEPS, Factory, Made


@pytest.fixture(autouse=True)
def _arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this process, in which runs were trained, stays as it is for other tests."""
    monkeypatch.setattr("bench.engine.cpu.prepare", lambda: None)


def evaluated(made: Made, of: int = 0, which: str = "last", **options: Any) -> dict[str, Any]:
    run = made.open(of, which)
    how = how_of(run, **options)
    return record(run, how, roll_out(run, how))


def copied(made: Made, place: Path) -> Path:
    """Seed 0's folder in a copy of the cell, to be damaged."""
    cell = made.folders[0].parent
    shutil.copytree(cell, place / cell.name)
    return place / cell.name / "seed-0"


def checkpoints(run: Path) -> Path:
    (found,) = (run.parent / "checkpoints").iterdir()
    return found


# ------------------------------------------------------------------- the same episodes


@pytest.mark.parametrize("algo", list(SMALL))
def test_the_scores_of_training_come_out_again(algo: str, trained: Factory) -> None:
    """Catches: another seed's parameters, those of another step, the last ones for the best or the
    other way round, observations as they come, other start states, another target return, a memory
    that is not reset."""
    made = trained(algo)
    for seed in (0, 1):
        scores = made.recorded(seed)
        for which, step in (("last", STEPS), ("best", made.best(seed))):
            found = evaluated(made, seed, which)
            assert (found["checkpoint"], found["returns"]) == (
                {"which": which, "step": step},
                scores[step],
            )
            assert found["as_recorded"] == {"episodes": EPISODES, "largest_difference": 0.0}


def test_best_and_last_differ_in_these_tests(trained: Factory) -> None:
    assert all(any(trained(a).best(s) < STEPS for s in (0, 1)) for a in SMALL)


def test_more_episodes_go_on_from_those_of_training(trained: Factory) -> None:
    """Catches: start states that repeat from share to share, a last share of another size."""
    made = trained("td3_bc")
    found = evaluated(made, episodes=5)["returns"]
    assert len(set(found)) == 5
    assert found[:EPISODES] == made.recorded(0)[STEPS]
    assert evaluated(made, episodes=3)["returns"] == found[:3]


def test_shares_of_an_evaluation_know_nothing_of_each_other(trained: Factory) -> None:
    """Catches: a memory that is taken from one episode to the next."""
    run = trained("dreamer").open()
    how = How("Pendulum-v1", None, 0, 2 * EPISODES)
    fresh = evaluate.Chosen(run, EPISODES, lambda steps: None)
    second = Evaluator("Pendulum-v1", [0], EPISODES).run(fresh, run.step, first=EPISODES)
    assert roll_out(run, how).returns[0, EPISODES:].tolist() == second.returns[0].tolist()


def test_other_start_states_are_others(trained: Factory) -> None:
    made = trained("td3_bc")
    own, other = evaluated(made), evaluated(made, seed=7)
    assert not set(own["returns"]) & set(other["returns"])
    assert other["as_recorded"] is None and other["seed"] == 7


def test_scores_are_told_apart_from_other_episodes(trained: Factory) -> None:
    """Catches: a comparison with what was recorded that cannot fail."""
    run = trained("td3_bc").open()
    how = how_of(run)
    found = roll_out(run, how)
    found.returns[0, 1] += 0.5
    assert record(run, how, found)["as_recorded"]["largest_difference"] == pytest.approx(0.5)


def test_nothing_but_policies_of_the_group_shares_work(trained: Factory) -> None:
    """A seed acts as in its group: rows of others, and surplus ones, stay out of its numbers."""
    run = trained("td3_bc").open(1)
    chosen = evaluate.Chosen(run, EPISODES, lambda steps: None)
    chosen.reset(1, 1)
    seen = torch.tensor([[[0.5, -0.5, 1.0]]])
    whole = torch.zeros(2, EPISODES, 3)
    whole[1, 0] = seen
    assert torch.equal(chosen.act(seen)[0, 0], run.policy(EPISODES).act(whole)[1, 0])


def test_evaluations_beside_training_keep_the_best_too(trained: Factory, tmp_path: Path) -> None:
    """Catches: a best policy that is the one training had reached when its score came back."""
    made = trained.train("td3_bc", tmp_path, eval_workers=1)
    for seed in (0, 1):
        found = evaluated(made, seed, "best")
        assert found["returns"] == made.recorded(seed)[made.best(seed)]


def test_the_best_outlives_a_resume(trained: Factory, tmp_path: Path) -> None:
    """Catches: a best policy that is forgotten, or not replaced, by the second leg of a run."""
    first = trained.train("td3_bc", tmp_path, steps=10)
    assert [first.best(s) for s in (0, 1)] == [10, 10]
    made = trained.train("td3_bc", tmp_path, steps=20)
    assert [made.best(s) for s in (0, 1)] == [10, 20]
    for seed in (0, 1):
        assert evaluated(made, seed, "best")["returns"] == made.recorded(seed)[made.best(seed)]


def test_of_equal_evaluations_the_first_is_the_best() -> None:
    """Catches: a later one of the same mean, a seed that diverged, nan."""
    best = Best(3)
    for step, means in ((5, [1.0, 2.0, 3.0]), (10, [1.0, np.nan, 9.0]), (15, [4.0, 2.0, 9.0])):
        given = {"w": torch.full((3, 2), float(step))}
        alive = [0, 1] if step == 10 else [0, 1, 2]
        returns = np.array(means)[:, None] + np.array([[-1.0, 1.0]])
        best.offer(Evaluation(step, alive, {}, given), Rollouts(returns, returns))
    assert [found and found["step"] for found in best.found] == [15, 5, 15]
    assert best.tensors()["best.w"][:, 0].tolist() == [15.0, 5.0, 15.0]


# ------------------------------------------------------------------ elsewhere and else


def test_another_horizon_has_no_normalised_score(trained: Factory) -> None:
    made = trained("dqn")
    own = evaluated(made)
    random, expert = own["reference"]
    mean = np.mean(own["returns"])
    assert own["normalized"]["mean"] == pytest.approx(100 * (mean - random) / (expert - random))
    cut = evaluated(made, horizon=5)
    assert cut["lengths"] == [5, 5] and cut["returns"] == [5.0, 5.0]
    assert (cut["normalized"], cut["reference"], cut["as_recorded"]) == (None, None, None)


def test_another_environment_must_fit(
    trained: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained("dqn"), tmp_path)
    line = fails(capsys, "evaluate", run, "--env-id", "Acrobot-v1")
    assert "--env-id Acrobot-v1: has 6 numbers in an observation and 3 actions" in line
    assert "4 and 2 actions" in line
    assert "CartPole-v9" in fails(capsys, "evaluate", run, "--env-id", "CartPole-v9")
    assert not (run / "evaluations").exists()
    assert main(["evaluate", str(run), "--env-id", "CartPole-v0"]) == 0
    out = capsys.readouterr().out
    assert "trained for CartPole-v1" in out and "normalized" not in out
    (file,) = (run / "evaluations").iterdir()
    assert file.name == f"CartPole-v0-last-{STEPS}-seed-0-2.json"


def test_a_transformer_is_asked_for_another_return(
    trained: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: an option that changes nothing, or what other algorithms do."""
    made = trained("dt")
    run = made.open(target=-1500.0)
    how = how_of(run)
    found = record(run, how, roll_out(run, how))
    assert found["target_return"] == -1500.0 and found["as_recorded"] is None
    assert found["returns"] != made.recorded(0)[STEPS]
    assert "-target--1500-" in file_name(found)
    line = fails(capsys, "evaluate", trained("dqn").folders[0], "--target-return", "1")
    assert line == "error: --target-return: dqn takes none; leave it out"


def test_too_many_episodes_are_refused(trained: Factory) -> None:
    """Their start states would be those of the next step's evaluation."""
    with pytest.raises(ConfigError, match=f"at most {MOST_EPISODES}"):
        how_of(trained("dqn").open(), episodes=MOST_EPISODES + 1)


# ----------------------------------------------------------------------- the command


def test_an_evaluation_is_written_beside_the_run_and_changes_nothing(
    trained: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained("td3_bc"), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    out = tmp_path / "all.json"
    assert main(["evaluate", str(run.parent), "--episodes", "3", "--out", str(out)]) == 0
    assert {p: p.read_bytes() for p in before} == before
    listed = json.loads(out.read_text())
    assert [found["run"].rpartition("/")[2] for found in listed] == ["seed-0", "seed-1"]
    for seed, found in enumerate(listed):
        (file,) = (run.parent / f"seed-{seed}" / "evaluations").iterdir()
        assert json.loads(file.read_text()) == found
        assert found["episodes"] == 3 == len(found["returns"])
        assert found["versions"]["gymnasium"] and "git_commit" in found
        assert found["return"]["mean"] == pytest.approx(np.mean(found["returns"]))
    printed = capsys.readouterr().out
    assert printed.count("to the last bit") == 2
    assert "(sd of 2 seeds)" in printed


def test_the_interval_is_students(trained: Factory) -> None:
    run = trained("dqn").open()
    returns = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = record(run, How("CartPole-v0", None, 0, 4), Rollouts(returns, returns.astype(int)))
    # t(0.975, 3) = 3.18245, sd = 1.290994, sqrt(4) = 2
    assert found["return"]["interval"] == pytest.approx([0.445739, 4.554261], abs=1e-6)
    assert found["return"]["sd"] == pytest.approx(1.290994, abs=1e-6)
    one = record(run, How("CartPole-v0", None, 0, 1), Rollouts(returns[:, :1], np.array([[1]])))
    assert one["return"] == {"mean": 1.0, "sd": None, "interval": None}


def test_a_process_of_its_own_has_the_arithmetic_of_training(tmp_path: Path) -> None:
    """Catches: other threads or another way to multiply than training's, which show in bits."""
    data = pendulum_file(tmp_path / "pendulum.hdf5")
    words = [
        w if w != "hidden=8,8" else "hidden=64,64" for w in small_run(data, tmp_path, steps=20)
    ]
    assert bench(*words).returncode == 0  # smaller products have the same bits either way
    before = results(tmp_path)
    done = bench("evaluate", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the first 1 episodes return what training recorded") == 2
    assert results(tmp_path) == before


def test_long_evaluations_say_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.trained.commands.time.monotonic", lambda: now[0])
    meter = Meter("a run", 40)
    for now[0], over, steps in ((5.0, 0, 3), (12.0, 10, 7), (13.0, 10, 8)):
        meter(over, steps)
    assert (
        capsys.readouterr().err == "a run: 10 of 40 episodes, step 7 of the next, about 36 s left\n"
    )


# ------------------------------------------------------------------- what is not there


def test_runs_are_found_by_folder_and_glob(trained: Factory) -> None:
    folders = trained("td3_bc").folders
    out = trained.place / "td3_bc"
    assert find_runs([str(folders[1])]) == [folders[1]]
    assert find_runs([str(out)]) == find_runs([str(out / "runs")]) == folders
    assert find_runs([str(folders[0].parent / "seed-*"), str(folders[0])]) == folders
    with pytest.raises(RunError, match="no run is there"):
        find_runs([str(out / "nothing")])


def test_a_seed_that_diverged_has_a_best_policy_only(trained: Factory, tmp_path: Path) -> None:
    run = copied(trained("td3_bc"), tmp_path)
    step, tensors, meta = load_checkpoint(checkpoints(run))  # type: ignore[misc]
    save_checkpoint(checkpoints(run), step, tensors, {**meta, "diverged": {"0": "q is not finite"}})
    with pytest.raises(RunError, match=r"diverged \(q is not finite\); --checkpoint best"):
        open_run(run)
    assert open_run(run, "best").step == 10
    assert open_run(run.parent / "seed-1").step == STEPS


def test_checkpoints_of_old_need_the_data_and_have_no_best(
    trained: Factory, tmp_path: Path
) -> None:
    """Catches: a policy without its normalisation, a best one that is not."""
    made = trained("td3_bc")
    run = copied(made, tmp_path)
    step, tensors, meta = load_checkpoint(checkpoints(run))  # type: ignore[misc]
    old = {k: v for k, v in meta.items() if k not in ("problem", "best")}
    kept = {k: t for k, t in tensors.items() if not k.startswith("best.")}
    save_checkpoint(checkpoints(run), step, kept, old)
    with pytest.raises(ConfigError, match="--dataset FILE"):
        open_run(run)
    found = open_run(run, dataset=made.data)
    assert torch.equal(found.problem.mean, made.cell.problem.mean)
    how = how_of(found)
    assert roll_out(found, how).returns[0].tolist() == made.recorded(0)[STEPS]
    with pytest.raises(RunError, match="step 10, is not in its checkpoint"):
        open_run(run, "best", dataset=made.data)
    other = pendulum_file(tmp_path / "other.hdf5", rows=200)
    with pytest.raises(ConfigError, match="is not the data"):
        open_run(run, dataset=str(other))


def test_policies_need_their_own_tensors_only(trained: Factory, tmp_path: Path) -> None:
    """Catches: untrained parameters that act, a critic's new shape that keeps an actor out."""
    run = copied(trained("td3_bc"), tmp_path)
    step, tensors, meta = load_checkpoint(checkpoints(run))  # type: ignore[misc]
    critic = next(k for k in tensors if k.startswith("qvalue_network_params"))
    save_checkpoint(checkpoints(run), step, {**tensors, critic: torch.zeros(2, 1)}, meta)
    open_run(run).policy(1)
    actor = next(k for k in tensors if k.startswith("actor_network_params"))
    del tensors[actor]
    save_checkpoint(checkpoints(run), step, tensors, meta)
    with pytest.raises(RunError, match=f"the checkpoint's {actor} is missing"):
        open_run(run).policy(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hyperparameters": {"no_such": 1}}, "'hyperparameters' are not today's of td3_bc"),
        ({"protocol": None}, "has no 'protocol'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    change: dict[str, Any], words: str, trained: Factory, tmp_path: Path
) -> None:
    run = copied(trained("td3_bc"), tmp_path)
    config = json.loads((run / "config.json").read_text())
    changed = {k: v for k, v in {**config, **change}.items() if v is not None}
    (run / "config.json").write_text(json.dumps(changed))
    with pytest.raises(RunError, match=f"config.json.*{words}"):
        open_run(run)


def test_damaged_scores_are_named_and_a_line_being_written_is_not(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("step,episode,return,length,normalized_score\n5,0,1.5,7,\n10,0,2.")
    assert read_scores(path)[5].returns.tolist() == [[1.5]] and len(read_scores(path)) == 1
    path.write_text("step,episode,return,length,normalized_score\n5,0,many,7,\n")
    with pytest.raises(RunError, match=r"scores.csv: is damaged"):
        read_scores(path)
