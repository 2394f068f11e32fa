"""EDACLoss: the diversity of action gradients by hand and by finite differences; SAC-N."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rlobj import EDACLoss, LossModule
from rlobj.modules import ValueOperator
from tests.rlobj import cases
from tests.rlobj.cases import assert_close, build, numbers

ETA = 0.7


class Curved(nn.Module):
    """A critic whose action gradient depends on state and action."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(cases.OBS + cases.ACT, 4), nn.Linear(4, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.last(self.first(torch.cat([observation, action], -1)).tanh())


def curved(**kwargs: object) -> LossModule:
    critics = [ValueOperator(Curved(), ["observation", "action"]) for _ in range(3)]
    loss = EDACLoss(cases.stochastic(), critics, num_qvalue_nets=3, eta=ETA, **kwargs)
    return cases.perturb(loss)


def slow_diversity(gradients: list[list[float]]) -> float:
    """``eta / (N - 1) sum over ordered pairs of the cosine``."""
    total = 0.0
    for i, g in enumerate(gradients):
        for j, h in enumerate(gradients):
            if i != j:
                dot = sum(x * y for x, y in zip(g, h, strict=True))
                total += dot / (math.hypot(*g) * math.hypot(*h))
    return ETA * total / (len(gradients) - 1)


def test_linear_critics_by_hand() -> None:
    """Q linear in a: the gradient is the action's weights."""
    loss, data = build("edac", eta=ETA, reduction="none"), cases.batch()
    weights = [w[0][cases.OBS :] for w, _ in numbers(loss, "qvalue_network_params")]
    value, _ = loss.diversity_loss(data)
    assert_close(value, [slow_diversity(weights)] * cases.N)


@pytest.mark.parametrize("vmapped", [True, False])
def test_curved_critics_by_differences(vmapped: bool) -> None:
    loss, data = curved(deactivate_vmap=not vmapped, reduction="none"), cases.batch()
    expected = []
    for row in range(cases.N):
        one, gradients = data[row : row + 1], []
        for member in range(3):

            def q(action: Tensor, one: TensorDict = one, member: int = member) -> float:
                return loss._q(one, action)[member].item()

            slope = cases.central_difference(q, one["action"])
            gradients.append(slope.flatten().tolist())
        expected.append(slow_diversity(gradients))
    value = loss.diversity_loss(data)[0]
    torch.testing.assert_close(value.detach(), torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_diversity_trains_the_critics() -> None:
    """Its slope by the first layer's weights, by differences; actor and targets get none."""
    loss, data = curved(), cases.batch()
    value = loss.diversity_loss(data)[0].sum()
    named = dict(loss.named_parameters())
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    found = {k: g for k, g in zip(named, grads, strict=True) if g is not None}
    assert {k.split(".")[0] for k in found} == {"qvalue_network_params"}
    key = "qvalue_network_params.module.first.weight"

    def at(weight: Tensor) -> float:
        with loss.bind({key: weight}):
            return loss.diversity_loss(data)[0].sum().item()

    slope = cases.central_difference(at, named[key])
    torch.testing.assert_close(found[key], slope, rtol=1e-6, atol=1e-7)


def test_alike_and_opposed_critics() -> None:
    loss, data = build("edac", num_qvalue_nets=2, eta=1.0, reduction="none"), cases.batch()
    weight = loss.qvalue_network_params["module", "linear", "weight"].data
    weight[1] = 3 * weight[0]
    assert_close(loss.diversity_loss(data)[0], [2.0] * cases.N)
    weight[1] = -weight[0]
    assert_close(loss.diversity_loss(data)[0], [-2.0] * cases.N)


def test_critics_that_ignore_the_action() -> None:
    """No direction, no diversity."""
    loss, data = build("edac", eta=ETA), cases.batch()
    loss.qvalue_network_params["module", "linear", "weight"].data[..., cases.OBS :] = 0.0
    value = loss.diversity_loss(data)[0]
    assert_close(value, 0.0)


def test_without_the_term_it_is_sac_with_many_critics() -> None:
    loss, sac = build("edac", eta=0.0), build("sac", num_qvalue_nets=3, loss_function="l2")
    data = cases.batch()
    tape = cases.tape_for(loss, data)
    with sac.bind(loss.tensors()):
        expected = cases.taped(tape, sac, data)
    out = cases.taped(tape, loss, data)
    assert_close(out["loss_diversity"], 0.0)
    for key in sac.out_keys:
        assert_close(out[key], expected[key].detach())


def test_diversity_is_one_of_the_losses() -> None:
    loss, data = build("edac", eta=ETA), cases.batch()
    each = build("edac", eta=ETA, reduction="none").diversity_loss(data)[0]
    assert_close(loss(data)["loss_diversity"], each.detach().mean())
    with pytest.raises(ValueError, match="needs at least two critics"):
        build("edac", num_qvalue_nets=1)
