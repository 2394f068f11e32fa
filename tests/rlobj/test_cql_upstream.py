"""``CQLLoss(upstream=True)`` beyond its penalty, which test_discrete.py holds to a loop: who is
trained, torchrl 0.14.1's backup with its order of random draws, and what is written."""

import torch
from torch import Tensor

from rlobj import CQLLoss, LossModule
from tests.rlobj import cases
from tests.rlobj.cases import ACT, assert_close, draw_action, linear, numbers, rows, taped

GAMMA, SAMPLES, TEMPERATURE, WEIGHT, THRESHOLD = 0.9, 3, 0.7, 5.0, 1.5


def built(**kwargs: object) -> LossModule:
    settings = {"num_random": SAMPLES, "temperature": TEMPERATURE, "min_q_weight": WEIGHT}
    settings |= {"lagrange_thresh": THRESHOLD, "upstream": True, **kwargs}
    loss = CQLLoss(cases.stochastic(), cases.critic(), **settings)
    return cases.perturb(loss).make_value_estimator(gamma=GAMMA)


def penalty_noise(n: int = cases.N) -> list[Tensor]:
    """The uniform actions, pi(s) and pi(s'), each ``[n, rows, a]``."""
    shape = (n, SAMPLES, ACT)
    return [torch.rand(shape), 0.5 * torch.randn(shape), 0.5 * torch.randn(shape)]


def test_penalty_asks_the_actor_that_learns() -> None:
    data, tape = cases.batch(), penalty_noise()
    delayed, alone = (built(delay_actor=d, reduction="none") for d in (True, False))
    expected = taped(tape, delayed.cql_loss, data)[0].detach()
    with alone.bind(delayed.tensors()):
        assert_close(taped(tape, alone.cql_loss, data)[0], expected)


def test_dual_trains_critics_too() -> None:
    loss, data, tape = built(with_lagrange=True), cases.batch(), penalty_noise()

    def dual() -> Tensor:
        gap = taped(tape, loss.cql_loss, data)[1]["cql_gap"]
        return loss.alpha_prime_loss(gap)[0]

    cases.check_gradient(loss, dual, "log_alpha_prime", "qvalue_network_params")


def test_backup_of_the_best_action() -> None:
    """``r + gamma min_i max_a Q'_i(s', a)``, after one action per state that nobody uses."""
    loss, data = built(max_q_backup=True, reduction="none", loss_function="l1"), cases.batch(n=24)
    noise = 0.5 * torch.randn(24, SAMPLES, ACT)
    actor = numbers(loss, "actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    terms = []
    for i, row in enumerate(rows(data)):
        actions = [draw_action(actor, row["s2"], e)[0] for e in noise[i].tolist()]
        best = min(max(linear(net, row["s2"], a)[0] for a in actions) for net in target)
        goal = row["r"] + (0.0 if row["end"] else GAMMA * best)
        terms.append(sum(abs(linear(net, row["s"], row["a"])[0] - goal) for net in online))
    assert_close(taped([torch.randn(24, ACT), noise], loss.q_loss, data)[0], terms)


def test_what_is_written() -> None:
    data = cases.batch()
    built()(data)
    assert data["cql_q1_loss"].shape == (cases.N, cases.N * SAMPLES)
    assert not any(v.requires_grad for v in data.values(True, True))
