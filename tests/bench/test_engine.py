"""The engine against a loop that anybody can check, seed by seed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.engine.problem import problem_of, training_table
from bench.engine.sampling import gather
from bench.engine.trainer import NoiseBlocks, Trainer, build_agents
from bench.recipe import Recipe, load_recipe
from rlobj import noise
from tests.bench.conftest import numbered

SMALL: dict[str, dict[str, Any]] = {
    "bc": {"hidden": (8, 8), "batch_size": 5},
    "td3_bc": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "iql": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1, "dropout": 0.1, "schedule_steps": 9},
    "cql": {"hidden": (8, 8), "batch_size": 5, "num_random": 3, "lagrange": True, "tau": 0.1},
    "dt": {"width": 8, "layers": 1, "batch_size": 5, "context": 4, "warmup_steps": 4},
    "sac": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "td3": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "dqn": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "bc10": {"hidden": (8, 8), "batch_size": 5, "fraction": 0.5},
    "awac": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "edac": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1, "critics": 3},
    "sac_n": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1, "critics": 3},
    "rebrac": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "cal_ql": {"hidden": (8, 8), "batch_size": 5, "num_random": 3, "sparse": True, "tau": 0.1},
    "xql": {"hidden": (8, 8), "batch_size": 5, "num_random": 2, "dropout": 0.1, "tau": 0.1},
    "ddpg": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "online_dt": {
        "width": 8,
        "layers": 1,
        "heads": 2,
        "batch_size": 5,
        "context": 4,
        "warmup_steps": 4,
    },
    "redq": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1, "critics": 3},
    "dreamer": {
        "belief": 6,
        "state": 3,
        "width": 8,
        "batch_size": 5,
        "length": 4,
        "horizon": 3,
        "clip_norm": 0.5,
        "free_nats": 0.1,
        "model_steps": 2,
        "model_last": 4,
        "start_every": 3,
        "tau": 0.1,
        "held_out": 4,
    },
}
SMALL |= {
    "c51": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1, "atoms": 5},
    "discrete_cql": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "discrete_iql": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "discrete_sac": {"hidden": (8, 8), "batch_size": 5, "tau": 0.1},
    "qmix": {"hidden": (8,), "mixing": 4, "batch_size": 5, "layout": (1, 2, 1, 3), "tau": 0.1},
}
_CLONED = {"hidden": (8, 8), "batch_size": 5, "clone_steps": 2, "lr": 1e-2, "clone_lr": 1e-2}
SMALL |= dict.fromkeys(("ppo", "clip_ppo", "kl_ppo", "a2c", "reinforce"), _CLONED)
STEPS = 6
# what differs for the engine: delays, schedules, windows, Lagrange, actions, stages, several losses
KINDS = ("td3_bc", "iql", "dt", "cql", "dqn", "kl_ppo", "dreamer")


class Setup:
    """A recipe at toy size on toy data."""

    def __init__(self, name: str, dataset: SimpleNamespace) -> None:
        self.recipe: Recipe = load_recipe(name)
        self.dataset = dataset = numbered(dataset) if self.recipe.discrete else dataset
        hyper = replace(self.recipe.hyper(), **SMALL[name])
        self.hyper = hyper
        normalized = SimpleNamespace(
            normalize=getattr(hyper, "normalize", False), normalize_eps=1e-3
        )
        self.problem = problem_of(dataset, normalized)
        table = training_table(self.recipe, hyper, dataset.transitions, self.problem)
        self.sampler = self.recipe.sampler(hyper, table, torch.device("cpu"))

    def build(self) -> Any:
        return self.recipe.build(self.hyper, self.problem)

    def trainer(self, *seeds: int) -> Trainer:
        return Trainer(self.build, seeds, self.sampler, total_steps=STEPS)


@pytest.fixture(params=sorted(SMALL))
def setup(request: pytest.FixtureRequest, dataset: SimpleNamespace) -> Setup:
    return Setup(request.param, dataset)


def slow_loop(setup: Setup, seed: int, steps: int) -> dict[str, torch.Tensor]:
    """One seed with modules, autograd and torch's plain optimizers: no trace, no stacking."""
    agent = build_agents(setup.build, [seed])[0]
    recorder_draws = [_draws(agent, p, setup) for p in agent.phases]
    blocks = NoiseBlocks([seed], setup.sampler, [d for p in recorder_draws for d in p], "cpu")
    optimizers = [_optimizer(agent, p) for p in agent.phases]
    for step in range(1, steps + 1):
        index, tape = blocks.at(step)
        batch = gather(setup.sampler, index)[0]
        for phase, draws, (optimizer, groups) in zip(
            agent.phases, recorder_draws, optimizers, strict=True
        ):
            mine, tape = tape[: len(draws)], tape[len(draws) :]
            if not phase.due(step):
                continue
            # bound, a loss changes nothing of its own accord
            with noise.using(noise.Tape([t[0] for t in mine])), agent.loss.bind({}):
                terms = phase.terms(agent.loss, batch)
            optimizer.zero_grad()
            agent.loss.zero_grad()
            sum(v for k, v in terms.items() if k.startswith("loss_")).backward()
            for group in groups if phase.clip_norm is not None else []:
                _clip(group, phase.clip_norm)
            for spec, group in zip(phase.groups, optimizer.param_groups, strict=True):
                if spec.schedule is not None:
                    group["lr"] = spec.lr * spec.schedule(step - 1, STEPS)
            optimizer.step()
            _follow(agent, phase, terms)
    return {k: v.detach().clone() for k, v in agent.loss.tensors().items()}


def _draws(agent: Any, phase: Any, setup: Setup) -> list[noise.Draw]:
    recorder = noise.Recorder()
    with noise.using(recorder), agent.loss.bind({}):
        phase.terms(agent.loss, gather(setup.sampler, torch.zeros(1, 5, dtype=torch.long))[0])
    return recorder.draws


def _optimizer(agent: Any, phase: Any) -> tuple[torch.optim.Optimizer, list[list[torch.Tensor]]]:
    named = {n: t for n, t in agent.loss.tensors().items() if isinstance(t, torch.nn.Parameter)}
    groups = [
        [t for n, t in named.items() if any(n == p or n.startswith(p + ".") for p in g.tensors)]
        for g in phase.groups
    ]
    specs = [
        {"params": params, "lr": g.lr, "weight_decay": g.weight_decay}
        for params, g in zip(groups, phase.groups, strict=True)
    ]
    cls = torch.optim.AdamW if phase.groups[0].decoupled else torch.optim.Adam
    return cls(specs, foreach=False), groups


def _clip(params: list[torch.Tensor], limit: float) -> None:
    norm = torch.sqrt(sum((p.grad**2).sum() for p in params))
    for p in params:
        p.grad *= min(1.0, float(limit / (norm + 1e-6)))


def _follow(agent: Any, phase: Any, terms: dict[str, torch.Tensor]) -> None:
    """What a phase changes besides the parameters that it trains."""
    tensors = agent.loss.tensors()
    for name, value in terms.items():
        if name.startswith("set_"):
            tensors[name.removeprefix("set_")].data.copy_(value)
    nets = [net.rpartition(".") for net in phase.targets]
    moved = [(f"{p}{dot}target_{n}_params", f"{p}{dot}{n}_params", agent.tau) for p, dot, n in nets]
    moved += [(*names, agent.tau) for names in phase.follows]
    for to, source, tau in [*moved, *((*names, 1.0) for names in phase.copies)]:
        for name, target in tensors.items():
            if name.startswith(f"{to}."):
                online = tensors[source + name.removeprefix(to)]
                target.data.copy_((1 - tau) * target.data + tau * online.data)


def test_a_stacked_seed_equals_a_slow_loop(setup: Setup) -> None:
    """Catches: gradients reaching the wrong weights (memory layout), a skipped or extra phase,
    wrong targets, schedules off by one, clipping across seeds, noise in the wrong order, another
    seed's batches or noise."""
    trainer = setup.trainer(0, 3)
    start = {k: v[1].clone() for k, v in trainer.tensors.items()}
    for _ in range(STEPS):
        trainer.update()
    expected = slow_loop(setup, 3, STEPS)
    moved = [k for k in expected if not torch.equal(expected[k], start[k])]
    assert moved, "nothing was trained"
    for name, value in expected.items():
        torch.testing.assert_close(trainer.tensors[name][1], value, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in KINDS[:-1] else pytest.mark.slow) for n in SMALL]
)
def test_a_stacked_seed_equals_the_seed_alone(name: str, dataset: SimpleNamespace) -> None:
    """Over 100 updates. Here most are equal to the bit; none differs by more than 3e-7."""
    setup = Setup(name, dataset)
    together, alone = setup.trainer(0, 1), setup.trainer(1)
    for _ in range(100):
        for trainer in (together, alone):
            trainer.update()
    assert any(not torch.equal(*pair) for pair in together.tensors.values()), "the seeds are alike"
    for name, (_, stacked) in together.tensors.items():
        expected = alone.tensors[name][0]
        torch.testing.assert_close(stacked, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", KINDS)
def test_resume_is_bit_exact(name: str, dataset: SimpleNamespace) -> None:
    """Catches: something that training changes and a state lacks: it stays as it was later."""
    trainer = Setup(name, dataset).trainer(0, 1)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for step in range(1, STEPS + 1):
        trainer.update()
        states[step] = {k: v.clone() for k, v in trainer.state().items()}
    for start in (1, 3):  # the recipes with stages change them between
        trainer.load_state(start, states[start])
        for _ in range(STEPS - start):
            trainer.update()
        found = trainer.state()
        assert states[STEPS].keys() == found.keys()
        for name, value in states[STEPS].items():
            assert torch.equal(value, found[name]), name


def test_noise_blocks_depend_on_seed_and_step_alone(dataset: SimpleNamespace) -> None:
    setup = Setup("sac", dataset)
    draws = [noise.Draw("normal", (2,))]
    one, both = (NoiseBlocks(s, setup.sampler, draws, "cpu") for s in ([1], [0, 1]))
    for step in (1, 2, 101, 2):
        index, (eps,) = one.at(step)
        both_index, (both_eps,) = both.at(step)
        assert torch.equal(index[0], both_index[1]) and torch.equal(eps[0], both_eps[1])
    assert not torch.equal(one.at(1)[1][0], one.at(2)[1][0])


def test_only_transitions_with_a_known_next_observation_are_sampled(
    dataset: SimpleNamespace,
) -> None:
    setup = Setup("sac", dataset)
    n = int(dataset.transitions["valid_next"].sum())
    assert setup.sampler.packed.data.shape[0] == n == len(dataset.transitions) - 1


def test_windows_stop_at_the_end_of_an_episode(dataset: SimpleNamespace) -> None:
    setup = Setup("dt", dataset)
    batch = gather(setup.sampler, torch.tensor([[7, 0]]))
    mask = batch["collector", "mask"][0]
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch["t"][0, 0].tolist() == [7.0, 8.0, 0.0, 0.0]
    reward = dataset.transitions["next", "reward"].squeeze(-1)
    to_go = batch["return_to_go"][0, 1, :, 0] * setup.hyper.return_scale
    expected = torch.stack([reward[i:9].sum() for i in range(4)])
    torch.testing.assert_close(to_go, expected)


@pytest.mark.parametrize("name", KINDS)
def test_replayed_blocks_equal_updates_one_by_one(name: str, dataset: SimpleNamespace) -> None:
    """Catches: a block on another's noise, batch or learning rate, phases due at the wrong
    updates of a block or beyond their ends, wrong counts. The replay is a Python function here, on
    a GPU a graph."""
    captured, setup = [], Setup(name, dataset)

    def capture(work: Any) -> Any:
        captured.append(work)
        return work

    steps, size = 13, 3  # blocks start at odd and at even updates
    plain = setup.trainer(0, 1)
    blocks = Trainer(setup.build, (0, 1), setup.sampler, total_steps=STEPS)
    plain.noise.size = blocks.noise.size = size
    blocks._capture(capture)
    for _ in range(steps):
        plain.update()
    while blocks.step < steps:
        blocks.advance(steps - blocks.step)
    cycle = max(p.phase.every for p in plain.phases)
    assert len(captured) == cycle and blocks.step == steps
    found = blocks.state()
    for name, value in plain.state().items():
        assert torch.equal(value, found[name]), name


def test_blocks_of_both_stages_are_captured_and_none_that_holds_their_border(
    dataset: SimpleNamespace,
) -> None:
    """Catches: a graph of the first stage replayed in the second, and one across the border."""
    setup, captured = Setup("clip_ppo", dataset), []
    setup.hyper = replace(setup.hyper, clone_steps=10)
    plain = setup.trainer(0)
    blocks = Trainer(setup.build, (0,), setup.sampler, total_steps=20)
    plain.noise.size = blocks.noise.size = 4
    blocks._capture(lambda work: captured.append(blocks.step) or work)
    for _ in range(20):
        plain.update()
    while blocks.step < 20:
        blocks.advance(20 - blocks.step)
    assert captured == [4, 12]  # 8 to 12 holds the border
    for name, value in plain.state().items():
        assert torch.equal(value, blocks.state()[name]), name


def test_a_capture_that_fails_goes_on_one_by_one_and_says_why(dataset: SimpleNamespace) -> None:
    setup = Setup("td3_bc", dataset)

    def capture(work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain, blocks = setup.trainer(0), setup.trainer(0)
    plain.noise.size = blocks.noise.size = 2
    blocks._capture(capture)
    while blocks.step < STEPS:
        blocks.advance(STEPS - blocks.step)
    for _ in range(STEPS):
        plain.update()
    assert blocks.engine == "eager, no graph: operation not permitted when stream is capturing"
    for name, value in plain.state().items():
        assert torch.equal(value, blocks.state()[name]), name


def test_the_update_that_broke_a_sum_is_named(dataset: SimpleNamespace) -> None:
    setup = Setup("td3_bc", dataset)
    trainer = setup.trainer(0, 1)
    for _ in range(3):
        trainer.update()
    assert trainer.broken() == {}
    trainer.read_metrics()
    trainer.tensors["actor_network_params.module.net.0.weight"][1] = float("inf")
    for _ in range(3):
        trainer.update()
    assert trainer.broken() == {1: "actor/loss_actor is not finite at step 4"}


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones(setup: Setup) -> None:
    eager = setup.trainer(0, 1)
    compiled = Trainer(setup.build, (0, 1), setup.sampler, total_steps=STEPS, compiled=True)
    for trainer in (eager, compiled):
        for _ in range(STEPS):
            trainer.update()
    assert compiled.engine == "compiled"
    for name, value in eager.tensors.items():
        torch.testing.assert_close(compiled.tensors[name], value, rtol=1e-5, atol=1e-6, msg=name)
