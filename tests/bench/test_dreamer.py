"""Dreamer on stored sequences: its table, the policy that remembers, pictures, and its dreams."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from bench import dreams
from bench.engine.agent import Agent
from bench.engine.problem import problem_of, training_table
from bench.engine.sampling import gather
from bench.engine.trainer import Trainer, build_agents
from bench.errors import ConfigError
from bench.policies import RecurrentPolicy, make_policies
from bench.recipe import Problem
from bench.recipes import dreamer
from rlobj import noise
from rlobj.specs import Bounded
from tests.bench.runs import bench, pendulum_file
from tests.bench.test_engine import SMALL, Setup

HYPER = dreamer.Hyper(**SMALL["dreamer"])
SETTINGS = [f"{k}={v}" for k, v in SMALL["dreamer"].items()]

# ------------------------------------------------------------------------------- the table


def test_rows_are_observations_with_what_led_to_them(dataset: SimpleNamespace) -> None:
    """Catches: an action or reward beside the wrong observation, a lost first or last observation,
    one that is not known."""
    data = dataset.transitions  # 12 episodes of 9; where the last one ends is not known
    hp = dataclasses.replace(HYPER, held_out=0, reward_scale=2.0, reward_bias=0.5)
    table = dreamer.table(hp, data)
    assert table["episode"].bincount().tolist() == [10] * 11 + [9]
    for episode in (0, 11):
        steps, rows = data[data["episode"] == episode], table[table["episode"] == episode]
        known = len(rows) - 1
        seen = torch.cat([steps["observation"][:1], steps["next", "observation"][:known]])
        action = torch.cat([torch.zeros(1, 2), steps["action"][:known]])
        reward = torch.cat([torch.zeros(1, 1), 2 * steps["next", "reward"][:known] + 0.5])
        assert torch.equal(rows["next", "observation"], seen)
        assert torch.equal(rows["action"], action)
        assert torch.equal(rows["next", "reward"], reward)


def test_episodes_that_are_held_out_are_trained_on_by_none(dataset: SimpleNamespace) -> None:
    trained = dreamer.table(HYPER, dataset.transitions)["episode"].unique()
    kept = dreamer.held_out_table(HYPER, dataset.transitions)["episode"].unique()
    assert kept.tolist() == [3, 7, 11]
    assert sorted([*trained.tolist(), *kept.tolist()]) == list(range(12))


def test_padding_teaches_nothing(dataset: SimpleNamespace) -> None:
    setup = Setup("dreamer", dataset)
    agent = setup.build()
    batch = gather(setup.sampler, torch.tensor([[7, 8, 9]]))[0]  # an episode has 10 rows
    mask = batch["collector", "mask"]
    assert mask.sum(1).tolist() == [3, 2, 1]
    other = batch.clone()
    for key in ("action", ("next", "observation"), ("next", "reward")):
        other[key][~mask] = 3.0
    for phase in agent.phases:
        with noise.using(noise.Recorder()):
            found, same = (phase.terms(agent.loss, b) for b in (batch, other))
        assert found and all(torch.equal(found[k], same[k]) for k in found)


# ------------------------------------------------------------------------ what is learned


@pytest.mark.parametrize(
    ("length", "every", "expected"),
    [(4, 1, [0, 1, 2, 3]), (4, 2, [1, 3]), (4, 3, [0, 3]), (4, 4, [3]), (4, 9, [3])],
)
def test_dreams_start_at_some_steps_and_at_the_last(
    length: int, every: int, expected: list[int]
) -> None:
    """Catches: windows without a start, and the mask of other steps."""
    step = torch.arange(float(length)).expand(2, length).unsqueeze(-1)
    watched = TensorDict({"next": {"state": step, "belief": -step}}, [2, length])
    watched["collector", "mask"] = step.squeeze(-1) > 0
    hp = dataclasses.replace(HYPER, length=length, start_every=every)
    found = dreamer.starts(hp, watched)
    assert found["state"].flatten().tolist() == 2 * expected
    assert found["collector", "mask"].tolist() == 2 * [e > 0 for e in expected]
    assert torch.equal(found["belief"], -found["state"])


def test_the_world_model_learns_first_and_slow_values_follow(dataset: SimpleNamespace) -> None:
    """Catches: stages off by one, a copy that starts elsewhere, stands still or jumps."""
    trainer = Setup("dreamer", dataset).trainer(0)  # model up to step 4, behaviour from step 3
    behavior = {"actor.actor_model", "actor.value_model", "value.value_model"}
    slow, fast = "actor.value_model", "value.value_model"
    copies = {k: k.replace(slow, fast) for k in trainer.tensors if k.startswith(slow)}
    assert copies and all(trainer.tensors[a].equal(trainer.tensors[b]) for a, b in copies.items())
    for step in range(1, 7):
        before = {k: t.clone() for k, t in trainer.tensors.items()}
        trainer.update()
        moved = [k for k, t in trainer.tensors.items() if not t.equal(before[k])]
        expected = {"model.world_model"} if step <= HYPER.model_last else set()
        expected |= behavior if step > HYPER.model_steps else set()
        assert {".".join(k.split(".")[:2]) for k in moved} == expected, step
        for a, b in copies.items():
            wanted = torch.lerp(before[a], trainer.tensors[b], HYPER.tau)
            torch.testing.assert_close(trainer.tensors[a], wanted)


def test_returns_end_in_the_slow_values(dataset: SimpleNamespace) -> None:
    """Returns of one step: the reward, and what the copy says of the state it leads to."""
    setup = Setup("dreamer", dataset)
    setup.hyper = dataclasses.replace(HYPER, horizon=1)
    loss = setup.build().loss
    start = TensorDict({"state": torch.randn(5, HYPER.state), "belief": torch.randn(5, 6)}, [5])

    def returned() -> Tensor:
        with noise.using(noise.Recorder()):
            return loss["actor"](start)[1]["lambda_target"]

    def shift(network: torch.nn.Module) -> None:
        with torch.no_grad():
            list(network.parameters())[-1].add_(1.0)  # the last bias

    before = returned()
    shift(loss["value"].value_model)
    assert torch.equal(returned(), before)
    shift(vars(loss["actor"])["value_model"])
    torch.testing.assert_close(returned(), before + HYPER.gamma)


# --------------------------------------------------------------- the policy that remembers


def adding(loss: Any, observed: TensorDict) -> Tensor:
    """Returns the sum of what it saw as its action, and behind it the number of its steps."""
    total, steps = observed["carried"].split([1, 1], -1)
    return torch.cat([total + observed["observation"], steps + 1], -1)


def test_a_recurrent_policy_gets_back_what_it_returned(dataset: SimpleNamespace) -> None:
    """Catches: memory that is shared between episodes or seeds, that stands still, or that outlives
    its episode."""
    setup = Setup("bc", dataset)
    loss = setup.build().loss
    agent = Agent(loss, (), policy=adding, carried=1)
    tensors = {k: torch.stack([t.detach()] * 2) for k, t in loss.tensors().items()}
    problem = Problem(1, Bounded(-torch.ones(1), torch.ones(1)))
    (policy,) = make_policies(setup.recipe, setup.hyper, agent, tensors, problem, 3)
    seen = torch.arange(6.0).reshape(2, 3, 1)
    for _ in range(2):
        policy.reset(2, 3)
        for step in (1, 2, 3):
            assert torch.equal(policy.act(seen), step * seen)
            assert torch.equal(policy.carried[..., 1], torch.full((2, 3), float(step)))


def test_dreamer_acts_on_what_its_world_model_makes_of_the_episode(
    dataset: SimpleNamespace,
) -> None:
    """The beliefs of a policy that acts, against those of a window of the same actions and
    observations. Catches: an action that enters late, another network than the trained one,
    observations that are not normalised, an episode that starts elsewhere than a window."""
    setup = Setup("dreamer", dataset)
    problem = problem_of(dataset, HYPER)
    agents = build_agents(lambda: dreamer.build(HYPER, problem), [0, 1])
    parts = [a.loss.tensors() for a in agents]
    tensors = {k: torch.stack([p[k].detach() for p in parts]) for k in parts[0]}
    (policy,) = make_policies(setup.recipe, HYPER, agents[0], tensors, problem, 2)
    assert isinstance(policy, RecurrentPolicy)
    seen = torch.randn(4, 2, 2, 3)  # step, seed, episode
    policy.reset(2, 2)
    actions = torch.stack([policy.act(o) for o in seen])
    entered = torch.cat([torch.zeros_like(actions[:1]), actions[:-1]]).movedim(0, 2)
    following = ((seen - problem.mean) / problem.std).movedim(0, 2)
    for seed, agent in enumerate(agents):
        after = {"observation": following[seed], "reward": torch.zeros(2, 4, 1)}
        mask = torch.ones(2, 4, dtype=torch.bool)
        batch = TensorDict({"action": entered[seed], "next": after, "collector": {"mask": mask}})
        world, actor = agent.loss["model"].world_model, agent.loss["actor"].actor_model
        with torch.no_grad(), noise.using(noise.Recorder()):  # its answer is 0
            latent = world(dreamer.windows(HYPER, batch))["next"].select("state", "belief")
            wanted = actor.get_dist(latent).deterministic_sample
        found = policy.carried[seed].split([2, HYPER.state, HYPER.belief], -1)
        for got, expected in zip(found[1:], (latent["state"], latent["belief"]), strict=True):
            torch.testing.assert_close(got, expected[:, -1])
        torch.testing.assert_close(actions[:, seed].movedim(0, 1), wanted)


# -------------------------------------------------------------------------------- pictures


def test_pictures_are_vectors_between_minus_and_plus_a_half(dataset: SimpleNamespace) -> None:
    """Catches: pixels that are standardised one by one, another scale in evaluation."""
    shown = dataset.transitions
    for key in ("observation", ("next", "observation")):
        levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
        shown = shown.set(key, levels.expand(len(shown), 2, 3).contiguous())
    dataset = SimpleNamespace(**{**vars(dataset), "transitions": shown})
    problem = problem_of(dataset, HYPER)
    table = training_table(dreamer.RECIPE, HYPER, shown, problem)
    expected = torch.tensor([-0.5, -0.3, 0.5] * 2)
    assert problem.observation == 6
    torch.testing.assert_close(table["next", "observation"], expected.expand(len(table), 6))


# ---------------------------------------------------------------------------------- dreams


def test_rank_correlation() -> None:
    a = np.array([1.0, 2.0, 2.0, 30.0])
    assert dreams.rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert dreams.rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4
    assert dreams.rank_correlation(a, np.array([5.0, 4.0, 6.0, 7.0])) == pytest.approx(0.6324555)


def test_windows_of_held_out_episodes_do_not_overlap(dataset: SimpleNamespace) -> None:
    found = dreams.held_out(HYPER, dataset, 4)  # episodes 3 and 7 have 10 rows, 11 has 9
    assert found["action"].shape == (6, 4, 2) and found["collector", "mask"].all()
    data, problem = dataset.transitions, problem_of(dataset, HYPER)
    seen = torch.cat([data["observation"][27:28], data["next", "observation"][27:34]])
    rows = (seen - problem.mean) / problem.std  # of episode 3
    torch.testing.assert_close(found["next", "observation"][:2], rows.unflatten(0, (2, 4)))


def test_what_is_imagined_follows_the_stored_actions(dataset: SimpleNamespace) -> None:
    """Rewards that equal the action are learned and imagined; the reward before says nothing.
    Catches: actions a step off in training or in the dream, a model that does not learn."""
    data = dataset.transitions
    reward = data["action"][:, :1]
    dataset.transitions = data.set(("next", "reward"), reward)
    changes = {"lr": 1e-2, "batch_size": 16, "clip_norm": 100.0, "horizon": 2, "model_last": 0}
    hp = dataclasses.replace(HYPER, reward_scale=2.0, reward_bias=0.25, **changes)
    problem = problem_of(dataset, hp)
    table = training_table(dreamer.RECIPE, hp, dataset.transitions, problem)
    sampler = dreamer.sampler(hp, table, torch.device("cpu"))
    trainer = Trainer(lambda: dreamer.build(hp, problem), [0], sampler, total_steps=1)
    for _ in range(400):
        trainer.update()
    batch = dreams.held_out(hp, dataset, 3)
    loss = trainer.agent.loss
    with loss.bind({k: t[0] for k, t in trainer.tensors.items()}):
        found = dreams.compare(loss, hp, batch, context=2)
    np.testing.assert_allclose(found.real, batch["action"][:, 2, 0], atol=1e-5)
    assert found.spearman > 0.8 and found.spearman_last < 0.7
    assert np.abs(found.imagined - found.real).mean() < 0.3


def test_the_command_measures_a_run(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path / "data.hdf5")
    words = ["run", "--algo", "dreamer", "--dataset", data, "--out", tmp_path, "--no-report"]
    words += ["--seeds", 2, "--workers", 1, "--steps", 4, "--eval-episodes", 1, "--no-mlflow"]
    done = bench(*words, "--set", *SETTINGS)
    assert done.returncode == 0, done.stderr
    first, second = sorted(tmp_path.glob("runs/*/dreamer/*/seed-*"))
    found = [dreams.measure(run, str(data), 4, None) for run in (first, second)]
    assert [len(c.real) for c in found] == [10, 10]  # 2 of 10 episodes of 41 rows, 7 steps each
    assert np.array_equal(found[0].real, found[1].real)
    assert not np.array_equal(found[0].imagined, found[1].imagined), "the seeds are the same"
    with pytest.raises(ConfigError, match="is not the data that"):
        other = pendulum_file(tmp_path / "other.hdf5", rows=200)
        dreams.measure(first, str(other), 4, None)
    assert dreams.main([str(tmp_path)]) == 2
