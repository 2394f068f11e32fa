"""The measured programs of ``bench perf``: what they compute, counted and worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.data import load
from bench.engine.problem import training_table
from bench.perf.counters import count
from bench.perf.measure import full_run_dataset, sizes
from bench.perf.rivals import bare, engine
from bench.perf.work import Work
from bench.plan import misfit
from bench.recipe import Problem, load_recipe
from bench.recipes import recipe_names


def test_operations_of_a_known_function() -> None:
    x, w = torch.randn(8, 16), torch.randn(16, 4, requires_grad=True)

    def step() -> None:
        y = (x @ w).reshape(-1)  # one product, one view
        loss = y.relu().sum()  # two
        torch.empty(3)  # none
        (grad,) = torch.autograd.grad(loss, [w])  # mask of relu, x' @ grad; expand is a view
        torch._foreach_mul_([grad, grad], 2.0)  # one
        loss.item()  # a wait

    ones_like = 1  # autograd starts with it
    found = count(step, 3)
    assert found["flops"] == 2 * (2 * 8 * 16 * 4)
    assert found["launches"] == 3 + ones_like + 2 + 1
    assert found["waits"] == 1
    with FlopCounterMode(display=False) as judge:
        step()
    assert found["flops"] == judge.get_total_flops()


# Matrix products by hand: two FLOPs for each weight and row, forward, for the weights' gradient
# and, except in first layers, for the input's. In MFLOP, of batches of 256.
ACTOR, CRITIC = (256 * 2e-6 * (n * 256 + 256 * 256 + 256 * out) for n, out in ((17, 6), (23, 1)))
ACTOR_IN, CRITIC_IN = (256 * 2e-6 * n * 256 for n in (17, 23))
CRITIC_STEP = 6 * CRITIC - 2 * CRITIC_IN
EXPECTED = {
    "bc": 3 * ACTOR - ACTOR_IN,
    # of the actor's loss: both forward, the actor's gradients, through one critic to the action
    "td3_bc": ACTOR + 2 * CRITIC + CRITIC_STEP + (3 * ACTOR - ACTOR_IN + 2 * CRITIC) / 2,
}


# 30 sampled actions and the data's through twin critics of three layers, 7680 + 256 rows
KNOWN = {"cql": 13_583.4, "dt": 14_672.9, "iql": 572.4, "sac": 581.6, **EXPECTED}
# What the losses do besides: the data's Q-values once more, gradients of the actions at s', the
# second critic of TD3.
MORE = {"cql": 0.031, "cal_ql": 0.028, "redq": 0.036, "td3": 0.089}
HEAVY = ("online_dt",)  # ten seconds a step


@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in bare.LOOPS],
)
def test_hand_written_loops_train_and_do_the_engines_products(algorithm: str) -> None:
    """Catches: a loop that leaves something out, an engine or a loss that does too much."""
    work = Work(**sizes(algorithm), rows=2000)
    torch.manual_seed(0)
    loop = bare.loop_of(work)
    tensors = [*loop.weights, *loop.targets]
    before = [w.detach().clone() for w in tensors]
    found = count(loop, 2)
    assert all(torch.isfinite(w).all() for w in tensors)
    same = sum(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    # the first of these rates do not move a weight of 1
    assert same == {"dt": 8, "online_dt": 10}.get(algorithm, 0)
    if algorithm in KNOWN:
        assert found["flops"] / 1e6 == pytest.approx(KNOWN[algorithm], rel=1e-4)
    trained = engine.trainer(work)
    trained.update()
    trained.update()
    more = count(trained.update, 2)["flops"] / found["flops"] - 1
    assert more == pytest.approx(MORE.get(algorithm, 0.0), abs=3e-3)


def test_every_recipe_has_data_to_be_measured_on() -> None:
    works = {name: Work(**sizes(name), rows=2000) for name in recipe_names()}
    assert works["qmix"].observation == 13 and works["qmix"].action == 4
    for name, work in works.items():
        recipe = load_recipe(name)
        problem = Problem(work.observation, engine.space(work), 1000)
        table = training_table(recipe, recipe.hyper(), engine.transitions(work), problem)
        assert len(table) and work.batch == recipe.hyper().batch_size
        dataset = load(full_run_dataset(name)) if name in ("dqn", "qmix", "sac") else None
        assert dataset is None or misfit(recipe, dataset) is None


def test_of_stages_the_last_is_measured() -> None:
    work = Work(**sizes("clip_ppo"), rows=2000)
    trained = engine.trainer(work)
    trained.update()
    assert [p.runs for p in trained.phases] == [0, 1]


def test_engine_does_the_same_products_and_metrics_cost_no_flops() -> None:
    work = Work("td3_bc", rows=2000, seeds=2)
    trained = engine.trainer(work)
    for _ in range(2):  # the first ones also reserve what the optimizers keep
        trained.update()
    found = count(trained.update, 2)
    assert found["flops"] / 2e6 == pytest.approx(EXPECTED["td3_bc"], rel=1e-5)
    plain = engine.without_metrics(work)
    assert plain["flops"] == found["flops"] and plain["launches"] < found["launches"]
