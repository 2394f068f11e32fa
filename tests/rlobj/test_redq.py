"""REDQLoss against loops: the random subset, terms per critic, the clamped temperature."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlobj import LossModule, noise
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, draw_action, linear, numbers, rows, taped

GAMMA, MANY = 0.9, 4


def built(**kwargs: object) -> LossModule:
    loss = cases.build("redq", **{"num_qvalue_nets": MANY, **kwargs})
    return loss.make_value_estimator(gamma=GAMMA)


def forward(loss: LossModule, data: TensorDict, order: list[int], eps: Tensor) -> TensorDict:
    """A call with given noise, ``[2, *batch, a]``: of the actions at s and at s'."""
    return taped([torch.tensor(order), eps], loss, data)


@pytest.mark.parametrize("order", [[1, 3, 2, 0], [2, 0, 1, 3]])
def test_critics_by_loop(order: list[int]) -> None:
    loss, data, eps = (
        built(reduction="none"),
        cases.batch(n=24),
        0.5 * torch.randn(2, 24, cases.ACT),
    )
    actor = numbers(loss, "actor_network_params")[0]
    online, target = (numbers(loss, f"{p}qvalue_network_params") for p in ("", "target_"))
    alpha, terms, errors, values, goals, met = (
        math.exp(loss.log_alpha.item()),
        [],
        [],
        [],
        [],
        set(),
    )
    for row, e in zip(rows(data), eps[1].tolist(), strict=True):
        action, log_prob = draw_action(actor, row["s2"], e)
        after = [linear(target[i], row["s2"], action)[0] for i in order[:2]]
        met.add(after.index(min(after)))
        values.append(min(after) - alpha * log_prob)
        goals.append(row["r"] + (0.0 if row["end"] else GAMMA * values[-1]))
        now = [linear(net, row["s"], row["a"])[0] for net in online]
        terms.append([cases.distance("smooth_l1", q, goals[-1]) for q in now])
        errors.append(max((q - goals[-1]) ** 2 for q in now))
    assert met == {0, 1}
    out = forward(loss, data, order, eps)
    assert_close(out["loss_qvalue"].T, terms)
    assert_close(out["next.state_value"], values)
    assert_close(out["target_value"], goals)
    assert_close(data["td_error"], errors)


def test_actor_and_temperature_by_loop() -> None:
    loss, data, eps = built(), cases.batch(), 0.5 * torch.randn(2, cases.N, cases.ACT)
    actor = numbers(loss, "actor_network_params")[0]
    critics, alpha = numbers(loss, "qvalue_network_params"), math.exp(loss.log_alpha.item())
    climbed, log_probs = [], {"s": [], "s2": []}
    for row, *draws in zip(rows(data), *eps.tolist(), strict=True):
        for state, e in zip(("s", "s2"), draws, strict=True):
            action, log_prob = draw_action(actor, row[state], e)
            log_probs[state].append(log_prob)
            if state == "s":
                climbed.append([linear(net, row["s"], action)[0] for net in critics])
    out = forward(loss, data, [0, 1, 2, 3], eps)
    mean_q = sum(map(sum, climbed)) / (MANY * cases.N)
    both = log_probs["s"] + log_probs["s2"]
    assert_close(out["state_action_value_actor"].T, climbed)
    assert_close(out["action_log_prob_actor"], log_probs["s"])
    assert_close(out["loss_actor"], alpha * sum(log_probs["s"]) / cases.N - mean_q)
    assert_close(out["entropy"], -sum(both) / len(both))
    assert_close(out["loss_alpha"], -alpha * (sum(both) / len(both) - cases.ACT))
    assert not any(out[k].requires_grad for k in loss.out_keys if not k.startswith("loss"))


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
    tape = [torch.randperm(MANY), torch.randn(2, cases.N, cases.ACT)]

    def compute() -> Tensor:
        return taped(tape, loss, data)[f"loss_{term}"]

    cases.check_gradient(loss, compute, f"{term}_network_params")


def test_gradient_of_the_temperature() -> None:
    """``alpha`` times that of the log-probability's gap, from within the range alone; none of it
    reaches the networks."""
    loss, data, eps = built(), cases.batch(), torch.randn(2, cases.N, cases.ACT)
    for log_alpha, alpha in ((0.3, math.exp(0.3)), (9.0, 10.0)):
        loss.log_alpha = log_alpha
        out = forward(loss, data, [0, 1, 2, 3], eps)
        params = dict(loss.named_parameters())
        grads = torch.autograd.grad(out["loss_alpha"], list(params.values()), allow_unused=True)
        (slope,) = (g for g in grads if g is not None)
        assert_close(slope, alpha * (out["entropy"] + cases.ACT))


def test_n_step_transitions() -> None:
    loss, data = built(), cases.batch()
    data["steps_to_next_obs"] = torch.arange(1, cases.N + 1).unsqueeze(-1)
    out = forward(loss, data, [0, 1, 2, 3], torch.zeros(2, cases.N, cases.ACT))
    after, alive = data["next"], 1 - data["next", "terminated"].double().squeeze(-1)
    discount = GAMMA ** torch.arange(1, cases.N + 1)
    goal = after["reward"].squeeze(-1) + discount * alive * out["next.state_value"]
    assert_close(out["target_value"], goal)


def test_batch_with_an_axis_of_one() -> None:
    loss, data = built(), cases.batch()
    eps = torch.randn(2, cases.N, cases.ACT)
    flat = forward(loss, data, [0, 1, 2, 3], eps)
    column = forward(loss, data.unsqueeze(-1), [0, 1, 2, 3], eps.unsqueeze(2))
    for name in ("loss_actor", "loss_qvalue", "loss_alpha"):
        assert_close(column[name], flat[name].detach())


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
    assert built(sub_sample_len=4).sub_sample_len == 4
    with pytest.raises(NotImplementedError, match="gSDE"):
        built(gSDE=True)
    assert cases.CASES["redq"]().target_entropy.item() == -cases.ACT
    assert not any("target_entropy" in name for name in built().state_dict())
    assert noise.Draw("permutation", (MANY,), torch.int64) in _draws()


def _draws() -> list[noise.Draw]:
    recorder = noise.Recorder()
    with noise.using(recorder):
        built()(cases.batch())
    return recorder.draws


@pytest.mark.parametrize("lead", [1, 4])
def test_permutations_drawn_ahead(lead: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = noise.Draw("permutation", (6,), torch.int64).sample(generator, "cpu", lead)
    assert drawn.sort(-1).values.tolist() == [list(range(6))] * lead
    assert lead == 1 or len({tuple(row) for row in drawn.tolist()}) > 1
