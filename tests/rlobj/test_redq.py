"""REDQLoss against loops: the random subset, the mean over critics, the clamped temperature."""

import math

import pytest
import torch
from torch import Tensor

from rlobj import LossModule, noise
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, draw_action, linear, numbers, rows, taped

GAMMA, MANY = 0.9, 4


def built(**kwargs: object) -> LossModule:
    loss = cases.build("redq", **{"num_qvalue_nets": MANY, **kwargs})
    return loss.make_value_estimator(gamma=GAMMA)


@pytest.mark.parametrize(
    ("lots", "chosen"), [([0.9, 0.1, 0.5, 0.3], (1, 3)), ([0.2, 0.8, 0.1, 0.9], (2, 0))]
)
def test_critic_by_loop(lots: list[float], chosen: tuple[int, int]) -> None:
    loss, data, eps = built(), cases.batch(n=24), 0.5 * torch.randn(24, cases.ACT)
    actor = numbers(loss, "actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    alpha, terms, errors, met = math.exp(loss.log_alpha.item()), [], [], set()
    for row, e in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s2"], e)
        after = [linear(target[i], row["s2"], action)[0] for i in chosen]
        met.add(after.index(min(after)))
        goal = row["r"] + (0.0 if row["end"] else GAMMA * (min(after) - alpha * log_prob))
        now = [linear(net, row["s"], row["a"])[0] for net in online]
        terms.append(sum(cases.distance("smooth_l1", q, goal) for q in now))
        errors.append(max((q - goal) ** 2 for q in now))
    assert met == {0, 1}
    value, info = taped([eps, torch.tensor(lots)], loss.qvalue_loss, data)
    assert_close(value, terms)
    assert_close(info["td_error"], errors)


def test_actor_by_loop() -> None:
    loss, data, eps = built(), cases.batch(), 0.5 * torch.randn(cases.N, cases.ACT)
    actor = numbers(loss, "actor_network_params")[0]
    critics, alpha = numbers(loss, "qvalue_network_params"), math.exp(loss.log_alpha.item())
    terms = []
    for row, e in zip(rows(data), eps.tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s"], e)
        q = [linear(net, row["s"], action)[0] for net in critics]
        terms.append(alpha * log_prob - sum(q) / MANY)
    assert_close(taped([eps], loss.actor_loss, data)[0], terms)


def test_every_subset_is_as_likely() -> None:
    loss = built()
    like, counts = torch.zeros(()), {}
    for _ in range(1200):
        pair = tuple(sorted(loss._subset(like).tolist()))
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 140
    assert max(counts.values()) < 260


@pytest.mark.parametrize("term", ["actor", "qvalue"])
def test_gradients(term: str) -> None:
    loss, data = built(), cases.batch()
    tape = [torch.randn(cases.N, cases.ACT), torch.rand(MANY)]
    method = getattr(loss, f"{term}_loss")

    def compute() -> Tensor:
        return taped(tape, method, data)[0]

    cases.check_gradient(loss, compute, f"{term}_network_params")


def test_forward_reports_means() -> None:
    loss, data = built(), cases.batch()
    tape = cases.tape_for(loss, data)
    out = taped(tape, loss, data)
    _, q_info = taped(tape[:2], loss.qvalue_loss, data)
    _, info = taped(tape[2:], loss.actor_loss, data)
    assert_close(out["state_action_value_actor"], info["state_action_value_actor"].mean())
    assert_close(out["action_log_prob_actor"], info["log_prob"].mean())
    assert_close(out["entropy"], -info["log_prob"].mean())
    assert_close(out["next.state_value"], q_info["next_value"].mean())
    assert_close(out["target_value"], q_info["target_value"].mean())
    assert not any(out[k].requires_grad for k in loss.scalar_keys)


def test_temperature_stays_in_its_range() -> None:
    loss = built()
    for log_alpha, alpha in ((-9.0, 0.1), (0.0, 1.0), (9.0, 10.0)):
        loss.log_alpha = log_alpha
        assert_close(loss.alpha, alpha)
    loss.max_log_alpha = 0.5
    assert_close(loss.alpha, math.exp(0.5))


def test_refused_settings() -> None:
    with pytest.raises(ValueError, match="sub_sample_len 5: of 4 critics"):
        built(sub_sample_len=5)
    with pytest.raises(NotImplementedError, match="gSDE"):
        built(gSDE=True)
    assert cases.CASES["redq"]().target_entropy.item() == -cases.ACT
    assert noise.Draw("uniform", (MANY,), torch.float64) in _draws()


def _draws() -> list[noise.Draw]:
    recorder = noise.Recorder()
    with noise.using(recorder):
        built()(cases.batch())
    return recorder.draws
