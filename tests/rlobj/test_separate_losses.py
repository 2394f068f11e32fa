"""``separate_losses``: layers that several networks share are trained by the first network's term
alone, the actor's before the value's before the critics'."""

import inspect
from collections.abc import Callable

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

import rlobj
from rlobj import LossModule
from rlobj.modules import (
    Actor,
    IndependentNormal,
    OneHotCategorical,
    ProbabilisticActor,
    ValueOperator,
)
from tests.rlobj import cases
from tests.rlobj.cases import ACT, ACTIONS, OBS


class Headed(nn.Module):
    """A head on a trunk that looks at the observation."""

    def __init__(self, trunk: nn.Module, outputs: int, more: int = 0) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(4 + more, outputs)

    def forward(self, observation: Tensor, *more: Tensor) -> Tensor:
        return self.head(torch.cat([self.trunk(observation), *more], -1))


def stochastic(trunk: nn.Module) -> ProbabilisticActor:
    body = nn.Sequential(Headed(trunk, 2 * ACT), cases.MeanAndScale())
    net = TensorDictModule(body, ["observation"], ["loc", "scale"])
    return ProbabilisticActor(
        net, in_keys=["loc", "scale"], distribution_class=IndependentNormal, spec=cases.spec()
    )


def categorical(trunk: nn.Module) -> ProbabilisticActor:
    net = TensorDictModule(Headed(trunk, ACTIONS), ["observation"], ["logits"])
    return ProbabilisticActor(net, in_keys=["logits"], distribution_class=OneHotCategorical)


def deterministic(trunk: nn.Module) -> Actor:
    return Actor(Headed(trunk, ACT), spec=cases.spec())


def critic(trunk: nn.Module) -> ValueOperator:
    return ValueOperator(Headed(trunk, 1, ACT), in_keys=["observation", "action"])


def value(trunk: nn.Module) -> ValueOperator:
    return ValueOperator(Headed(trunk, 1))


Nets = tuple[nn.Module, ...]
SPEC = {"action_spec": cases.spec()}
# loss, its kind of actor, whether it has V(s), further arguments
LOSSES: dict[str, tuple[Callable[..., LossModule], Callable, bool, dict]] = {
    "ddpg": (rlobj.DDPGLoss, deterministic, False, {}),
    "td3": (rlobj.TD3Loss, deterministic, False, SPEC),
    "td3_bc": (rlobj.TD3BCLoss, deterministic, False, SPEC),
    "rebrac": (rlobj.ReBRACLoss, deterministic, False, SPEC),
    "sac": (rlobj.SACLoss, stochastic, False, {}),
    "sac_v1": (rlobj.SACLoss, stochastic, True, {"num_qvalue_nets": 1}),
    "redq": (rlobj.REDQLoss, stochastic, False, {}),
    "edac": (rlobj.EDACLoss, stochastic, False, {}),
    "awac": (rlobj.AWACLoss, stochastic, False, {}),
    "iql": (rlobj.IQLLoss, stochastic, True, {}),
    "xql": (rlobj.XQLLoss, stochastic, True, {}),
}


def trains_a_trunk(loss: LossModule, name: str, term: str) -> bool:
    loss.mark_updated()
    value = loss(cases.batch_for(name, seed=1))[term]
    trunks = [p for k, p in loss.named_parameters() if "trunk" in k and p.requires_grad]
    grads = torch.autograd.grad(value, trunks, allow_unused=True)
    return any(g is not None and g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_critics_leave_the_actors_trunk_alone(name: str, separate: bool) -> None:
    cls, actor, has_value, more = LOSSES[name]
    trunk, own = nn.Linear(OBS, 4), nn.Linear(OBS, 4)
    nets: Nets = (actor(trunk), critic(trunk), *([value(own.requires_grad_(False))] * has_value))
    loss = cls(*nets, separate_losses=separate, **more)
    term = "loss_value" if name == "ddpg" else "loss_qvalue"
    assert trains_a_trunk(loss, name, term) != separate


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shares", ["loss_value", "loss_qvalue"])
@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name][2]])
def test_order_of_three(name: str, shares: str, separate: bool) -> None:
    """V shares with the actor; or the critics with V, which still trains what they share."""
    cls, actor, _, more = LOSSES[name]
    trunk, own = nn.Linear(OBS, 4), nn.Linear(OBS, 4)
    pair = (trunk, own) if shares == "loss_value" else (own, trunk)
    loss = cls(actor(pair[0]), critic(pair[1]), value(trunk), separate_losses=separate, **more)
    assert trains_a_trunk(loss, name, shares) != separate
    assert trains_a_trunk(loss, name, "loss_value") or shares == "loss_value"


@pytest.mark.parametrize("separate", [False, True])
def test_discrete_actions(separate: bool) -> None:
    trunk = nn.Linear(OBS, 4)
    values = ValueOperator(Headed(trunk, ACTIONS), out_keys=["action_value"])
    settings = {"num_actions": ACTIONS, "action_space": "one_hot", "separate_losses": separate}
    loss = rlobj.DiscreteSACLoss(categorical(trunk), values, **settings)
    assert trains_a_trunk(loss, "discrete_sac", "loss_qvalue") != separate


def test_every_loss_with_critics_is_tried() -> None:
    tried = {cls for cls, *_ in LOSSES.values()} | {rlobj.DiscreteSACLoss, rlobj.DiscreteIQLLoss}
    for cls in vars(rlobj).values():
        if isinstance(cls, type) and issubclass(cls, LossModule):
            arguments = inspect.signature(cls).parameters
            assert cls in tried or not {"separate_losses", "qvalue_network"} <= set(arguments)
