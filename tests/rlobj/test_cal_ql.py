"""CalQLLoss against loops over states, critics and all 3 n sampled actions, and against slopes.

The reference is Nakamoto et al. 2023, eq. 5.1, with the authors' code's choice of actions.
"""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlobj import CalQLLoss, CQLLoss, LossModule
from tests.rlobj import cases
from tests.rlobj.cases import (
    ACT,
    HIGH,
    LOW,
    assert_close,
    draw_action,
    linear,
    numbers,
    rows,
    taped,
)

GAMMA, SAMPLES, TEMPERATURE, WEIGHT, THRESHOLD = 0.9, 4, 0.7, 3.0, 1.5
SETTINGS = {
    "num_random": SAMPLES,
    "temperature": TEMPERATURE,
    "min_q_weight": WEIGHT,
    "lagrange_thresh": THRESHOLD,
}


def built(**kwargs: object) -> LossModule:
    loss = CalQLLoss(cases.stochastic(), cases.critic(), **{**SETTINGS, **kwargs})
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def batch(n: int = 8) -> TensorDict:
    """Returns around the critics' values, so that both sides of the maximum occur."""
    data = cases.batch(n=n)
    data["mc_return"] = torch.linspace(-1.5, 1.5, n).flip(0)
    return data


def penalty_noise(n: int = 8) -> list[Tensor]:
    """Noise for pi(s), pi(s') and the uniform actions, in the loss's order."""
    normal = [0.5 * torch.randn(SAMPLES, n, ACT) for _ in range(2)]
    return [*normal, torch.rand(SAMPLES, n, ACT)]


def slow_gap(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> list[list[float]]:
    """``[critic][state]``: T log sum_j exp(Qbar(s, a_j) / T) / mu(a_j) - Q(s, a), where Qbar is
    max(Q, V_mu) for the policy's actions and Q for the uniform ones."""
    actor = numbers(loss, "actor_network_params")[0]
    here, there, uniform = (x.tolist() for x in tape)
    density = 1 / math.prod(h - w for w, h in zip(LOW, HIGH, strict=True))
    floors = data["mc_return"].flatten().tolist()
    gaps, met = [], set()
    for net in numbers(loss, "qvalue_network_params"):
        gaps.append([])
        for i, row in enumerate(rows(data)):
            total = 0.0
            for j in range(SAMPLES):
                box = zip(LOW, HIGH, uniform[j][i], strict=True)
                q = linear(net, row["s"], [w + (h - w) * u for w, h, u in box])[0]
                met.add(("uniform", q < floors[i]))
                total += math.exp(q / TEMPERATURE) / density
                for what, s, eps in (("s", row["s"], here), ("s2", row["s2"], there)):
                    action, log_density = draw_action(actor, s, eps[j][i])
                    q = linear(net, row["s"], action)[0]
                    met.add((what, q < floors[i]))
                    q = floors[i] if floors[i] > q else q
                    total += math.exp(q / TEMPERATURE) / math.exp(log_density)
            gaps[-1].append(TEMPERATURE * math.log(total) - linear(net, row["s"], row["a"])[0])
    assert len(met) == 6, "the batch does not exercise every branch"
    return gaps


@pytest.mark.parametrize("column", [False, True])
def test_penalty_by_loop(column: bool) -> None:
    loss, data, tape = built(reduction="none"), batch(), penalty_noise()
    gaps = slow_gap(loss, data, tape)
    if column:
        data["mc_return"] = data["mc_return"].unsqueeze(-1)
    value, info = taped(tape, loss.cql_loss, data)
    assert_close(value, [WEIGHT * (a + b) for a, b in zip(*gaps, strict=True)])
    assert_close(info["cql_gap"], WEIGHT * torch.tensor(gaps))


def test_penalty_by_hand() -> None:
    """One state, one sample of each kind, Q(s, a) = a, pi(a|s) = N(0, 1) squashed into (-1, 1),
    V_mu(s) = 0.5. The noise 0 draws a = 0, whose density is (2 pi)^-1/2; the uniform draw 0.9 is
    a = 0.8 with density 1/2. The data's action is 0.25."""
    actor = cases.ProbabilisticActor(
        cases.TensorDictModule(
            lambda s: (0 * s, torch.ones_like(s)), ["observation"], ["loc", "scale"]
        ),
        ["loc", "scale"],
        distribution_class=cases.TanhNormal,
        spec=cases.Bounded(-1.0, 1.0, (1,)),
    )
    critic = cases.ValueOperator(torch.nn.Linear(1, 1, bias=False), ["action"])
    critic.module.weight.data.fill_(1.0)
    loss = CalQLLoss(actor, [critic, critic], num_random=1, min_q_weight=2.0)
    data = TensorDict(
        {
            "observation": torch.zeros(1, 1),
            "action": torch.tensor([[0.25]]),
            "mc_return": torch.tensor([0.5]),
            ("next", "observation"): torch.zeros(1, 1),
        },
        [1],
    )
    tape = [torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.9)]
    value, _ = taped(tape, loss.cql_loss, data)
    # log(2 e^0.8 + 2 sqrt(2 pi) e^0.5) - 0.25 = log(4.451081857 + 8.265462708) - 0.25
    assert value.item() == pytest.approx(2 * 2 * 2.2929038673, abs=1e-8)


def test_far_below_its_values_it_is_cql() -> None:
    """A return below every value bounds nothing; one above all of them replaces them."""
    data, tape = batch(), penalty_noise()
    data["mc_return"].fill_(-1e3)
    cql = cases.perturb(CQLLoss(cases.stochastic(), cases.critic(), reduction="none", **SETTINGS))
    expected = taped(tape, cql.cql_loss, data)[0].detach()
    assert_close(taped(tape, built(reduction="none").cql_loss, data)[0], expected)
    data["mc_return"].fill_(1e3)
    assert taped(tape, built(reduction="none").cql_loss, data)[0].min() > 2 * WEIGHT * 990


def test_lagrange_by_loop() -> None:
    loss, data, tape = built(with_lagrange=True, reduction="none"), batch(), penalty_noise()
    loss.log_alpha_prime.data.fill_(0.4)
    excess = [[WEIGHT * g - THRESHOLD for g in per] for per in slow_gap(loss, data, tape)]
    value, info = taped(tape, loss.cql_loss, data)
    assert_close(value, [math.exp(0.4) * (a + b) for a, b in zip(*excess, strict=True)])
    dual, _ = loss.alpha_prime_loss(info["cql_gap"])
    assert_close(dual, [-math.exp(0.4) * (a + b) / 2 for a, b in zip(*excess, strict=True)])


BACKUPS = {
    "best": {},
    "best with entropy": {"deterministic_backup": False},
    "one": {"max_q_backup": False},
}


@pytest.mark.parametrize("backup", BACKUPS)
@pytest.mark.parametrize("delay_actor", [False, True])
def test_critic_by_loop(backup: str, delay_actor: bool) -> None:
    """The next value is that of the action which is best by its worst critic."""
    loss, data = built(delay_actor=delay_actor, **BACKUPS[backup], reduction="none"), batch(16)
    tries = 1 if backup == "one" else SAMPLES
    eps = 1.5 * torch.randn(tries, 16, ACT)
    actor = numbers(loss, "actor_network_params")[0]  # the authors bootstrap with the online one
    target, online = (numbers(loss, f"{p}qvalue_network_params") for p in ("target_", ""))
    alpha, expected, errors, met = math.exp(loss.log_alpha.item()), [], [], set()
    for i, row in enumerate(rows(data)):
        draws = [draw_action(actor, row["s2"], e.tolist()) for e in eps[:, i]]
        worst = [min(linear(net, row["s2"], a)[0] for net in target) for a, _ in draws]
        best = worst.index(max(worst))
        met.add(best)
        bonus = alpha * draws[best][1] if "entropy" in backup else 0.0
        goal = row["r"] + (0.0 if row["end"] else GAMMA * (worst[best] - bonus))
        now = [linear(net, row["s"], row["a"])[0] for net in online]
        expected.append(sum((q - goal) ** 2 for q in now))
        errors.append(max((q - goal) ** 2 for q in now))
    assert len(met) > 1 or tries == 1
    value, info = taped([eps[0] if tries == 1 else eps], loss.q_loss, data)
    assert_close(value, expected)
    assert_close(info["td_error"].max(0).values, errors)


def test_forward_reduces_terms() -> None:
    loss, each, data = built(), built(reduction="none"), batch()
    tape = cases.tape_for(loss, data)
    out = taped(tape, loss, data)
    expected = {
        "loss_qvalue": taped(tape[:1], each.q_loss, data)[0],
        "loss_cql": taped(tape[1:4], each.cql_loss, data)[0],
        "loss_actor_bc": taped(tape[4:5], each.actor_bc_loss, data)[0],
        "loss_actor": taped(tape[5:], each.actor_loss, data)[0],
    }
    for name, value in expected.items():
        assert_close(out[name], value.detach().mean())


@pytest.mark.parametrize("settings", [{}, {"with_lagrange": True}])
def test_penalty_gradient(settings: dict) -> None:
    """Where the return is the larger, the action's value gets no gradient."""
    loss, data, tape = built(**settings), batch(), penalty_noise()
    method = loss.cql_loss
    cases.check_gradient(loss, lambda: taped(tape, method, data)[0], "qvalue_network_params")


def test_critic_gradient() -> None:
    loss, data = built(deterministic_backup=False), batch()
    eps = torch.randn(SAMPLES, 8, ACT)
    cases.check_gradient(loss, lambda: taped([eps], loss.q_loss, data)[0], "qvalue_network_params")


def test_no_gradient_below_the_return() -> None:
    """With the return above all values only the uniform and the data's actions train critics."""
    loss, data, tape = built(reduction="none"), batch(), penalty_noise()
    data["mc_return"].fill_(50.0)
    critics = dict(loss.named_parameters())["qvalue_network_params.module.linear.weight"]
    (grad,) = torch.autograd.grad(taped(tape, loss.cql_loss, data)[0].sum(), critics)
    pushed = -WEIGHT * torch.cat([data["observation"], data["action"]], -1).sum(0)
    assert_close(grad, pushed.expand(2, 1, cases.OBS + ACT))


def test_windows_of_time() -> None:
    loss, flat = built(reduction="none"), batch(6)
    tape = [*penalty_noise(6), torch.randn(SAMPLES, 6, ACT)]
    split = [x.reshape(SAMPLES, 2, 3, ACT) for x in tape]
    for part, method in ((slice(3), loss.cql_loss), (slice(3, 4), loss.q_loss)):
        value = taped(tape[part], method, flat)[0]
        shaped = taped(split[part], method, flat.reshape(2, 3))[0]
        assert_close(shaped.reshape(6), value.detach())


def test_renamed_return() -> None:
    loss, data, tape = built(reduction="none"), batch(), penalty_noise()
    expected = taped(tape, loss.cql_loss, data)[0].detach()
    loss.set_keys(mc_return=("info", "to_go"))
    assert ("info", "to_go") in loss.in_keys
    data["info", "to_go"] = data.pop("mc_return")
    assert_close(taped(tape, loss.cql_loss, data)[0], expected)


def test_defaults_are_the_authors() -> None:
    loss = CalQLLoss(cases.stochastic(), cases.critic())
    assert (loss.min_q_weight, loss.num_random, loss.temperature) == (5.0, 10, 1.0)
    assert (loss.max_q_backup, loss.deterministic_backup, loss.with_lagrange) == (True, True, False)
    assert loss.loss_function == "l2"


def test_settings_reach_the_loss() -> None:
    loss = built(
        loss_function="l1", alpha_init=2.0, min_alpha=0.5, max_alpha=4.0, fixed_alpha=True,
        target_entropy=-7.0, delay_qvalue=False, delay_actor=True, reduction="none",
        deactivate_vmap=True, scalar_output_mode="exclude",
        action_spec=cases.Bounded(-3.0, 5.0, (ACT,)),
    )  # fmt: skip
    assert (loss.loss_function, loss.fixed_alpha, loss.reduction) == ("l1", True, "none")
    assert (loss.deactivate_vmap, loss.scalar_output_mode) == (True, "exclude")
    assert loss.delayed_networks() == ["actor_network"]
    assert_close(loss.target_entropy, -7.0)
    assert_close(loss.alpha_init, 2.0)
    assert_close(loss.min_log_alpha.exp(), 0.5)
    assert_close(loss.max_log_alpha.exp(), 4.0)
    assert_close(loss.high, [5.0, 5.0])
