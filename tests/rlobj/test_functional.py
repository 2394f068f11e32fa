"""Every loss as a pure function of (parameters, batch, noise), and its copies of networks."""

import copy

import pytest
import torch
from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from rlobj import (
    BCLoss,
    CQLLoss,
    HardUpdate,
    IQLLoss,
    LossModule,
    SACLoss,
    SoftUpdate,
    TD3BCLoss,
    noise,
)
from rlobj.modules import Actor, Dropout, ProbabilisticActor, TanhNormal, ValueOperator
from tests.rlobj import cases, dreams, on_policy
from tests.rlobj.cases import CASES, ENSEMBLES, assert_close, batch_for, build, tape_for, taped

STOCHASTIC = (
    *("sac", "sac_delayed", "sac_v1", "cql", "cql_lagrange", "redq", "edac", "awac"),
    *("td3_bc", "td3", "rebrac", "cal_ql", "cal_ql_lagrange", "xql_random", "online_dt"),
    *("dreamer_model", "dreamer_actor"),
    *on_policy.STOCHASTIC,
)
each_loss = pytest.mark.parametrize("name", CASES)


def computed(loss: LossModule, data: TensorDict, tape: list[Tensor]) -> TensorDict:
    return dreams.terms(taped(tape, loss, data.clone()))


def losses_of(out: TensorDict) -> Tensor:
    return torch.stack([v for k, v in dreams.terms(out).items() if k.startswith("loss")])


def same(one: TensorDict, other: TensorDict) -> None:
    assert set(one.keys()) == set(other.keys())
    for key in set(one.keys()):
        assert_close(one[key], other[key].detach())


@each_loss
def test_noise_decides(name: str) -> None:
    loss, data = build(name), batch_for(name)
    tape = tape_for(loss, data)
    assert bool(tape) == (name in STOCHASTIC)
    reader = noise.Tape([*tape, torch.zeros(7)])
    with noise.using(reader):
        first = loss(data.clone())
    assert next(reader._tensors).shape == (7,)  # a forward draws what its recording said, no more
    torch.manual_seed(5)
    assert torch.equal(losses_of(first), losses_of(computed(loss, data, tape)))
    other = losses_of(computed(loss, data, tape_for(loss, data, seed=9)))
    assert torch.equal(losses_of(first), other) == (name not in STOCHASTIC)


@each_loss
def test_the_global_seed_decides_without_a_source(name: str) -> None:
    loss, data, found = build(name), batch_for(name), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(losses_of(loss(data)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (name not in STOCHASTIC)


@each_loss
def test_input_keeps_its_entries(name: str) -> None:
    """A loss adds the entries that it has keys for and changes nothing else."""
    loss, data = build(name), batch_for(name)
    before = data.clone()
    loss(data)
    added = set(data.keys()) - set(before.keys())
    writes = ("priority", "pred_val", "pred_q1", "pred_q2", "cql_q1_loss", "cql_q2_loss")
    writes += ("log_prob",) if isinstance(loss, IQLLoss) else ()
    writes += ("advantage", "value_target", "value") if name == "reinforce" else ()
    named = {getattr(loss.tensor_keys, k) for k in writes if hasattr(loss.tensor_keys, k)}
    assert added == named
    assert (data.select(*before.keys()) == before).all()


@each_loss
def test_deepcopy_is_independent(name: str) -> None:
    loss, data = build(name), batch_for(name)
    tape = tape_for(loss, data)
    twin, expected = copy.deepcopy(loss), computed(loss, data, tape)
    same(computed(twin, data, tape), expected)
    for tensor in twin.tensors().values():
        tensor.data.add_(1.0)
    same(computed(loss, data, tape), expected)
    assert not torch.equal(losses_of(computed(twin, data, tape)), losses_of(expected))


@pytest.mark.parametrize("name", ENSEMBLES)
def test_without_vmap(name: str) -> None:
    loss, plain, data = build(name), build(name, deactivate_vmap=True), batch_for(name)
    tape = tape_for(loss, data)
    same(computed(plain, data, tape), computed(loss, data, tape))


@each_loss
def test_bind_equals_a_loss_that_holds_the_parameters(name: str) -> None:
    loss, data, other = build(name), batch_for(name), cases.perturb(CASES[name](), seed=2)
    tape = tape_for(loss, data)
    own, expected = computed(loss, data, tape), computed(other, data, tape)
    with loss.bind(other.tensors()):
        same(computed(loss, data, tape), expected)
    assert not torch.equal(losses_of(own), losses_of(expected))
    same(computed(loss, data, tape), own)


@each_loss
def test_bind_of_some_tensors_leaves_the_others(name: str) -> None:
    loss, data = build(name), batch_for(name)
    tape = tape_for(loss, data)
    changed = next(k for k in loss.tensors() if k.endswith("weight"))
    part = {changed: loss.tensors()[changed].detach() + 0.1}
    other = copy.deepcopy(loss)
    other.tensors()[changed].data.add_(0.1)
    with loss.bind(part):
        same(computed(loss, data, tape), computed(other, data, tape))


def test_bind_nests_and_recovers() -> None:
    loss, data = build("sac"), cases.batch()
    tape, own = tape_for(loss, data), loss.log_alpha
    other = {k: v.detach() + 0.1 for k, v in loss.tensors().items()}
    with loss.bind(other):
        expected = computed(loss, data, tape)
        with pytest.raises(KeyError), loss.bind({"log_alpha": torch.tensor(9.0)}):
            assert loss.log_alpha == 9
            raise KeyError
        with loss.bind({"log_alpha": other["log_alpha"]}):
            same(computed(loss, data, tape), expected)  # the outer parameters are still there
        same(computed(loss, data, tape), expected)
    assert loss.log_alpha is own
    assert dict(loss.named_parameters())["log_alpha"] is own


@each_loss
def test_vmap_over_seeds_equals_a_loop(name: str) -> None:
    """Losses and gradients of three stacked seeds, each with its own batch and noise."""
    loss = build(name)
    members = [cases.perturb(CASES[name](), seed=s).tensors() for s in (2, 3, 4)]
    data = [batch_for(name, seed=s) for s in (2, 3, 4)]
    tapes = [tape_for(loss, d, seed=s) for s, d in enumerate(data)]

    def one(bound: dict[str, Tensor], batch: TensorDict, tape: list[Tensor]) -> Tensor:
        with loss.bind(bound):
            return losses_of(taped(tape, loss, batch))

    stacked = {k: torch.stack([m[k].detach() for m in members]) for k in members[0]}
    wanted = [k for k in stacked if k in dict(loss.named_parameters()) and k not in dreams.HELD]
    for k in wanted:
        stacked[k].requires_grad_()
    noises = [torch.stack(t) for t in zip(*tapes, strict=True)]
    together = vmap(one)(stacked, torch.stack(data), noises)
    grads = torch.autograd.grad(together.sum(), [stacked[k] for k in wanted])
    for i, (batch, tape) in enumerate(zip(data, tapes, strict=True)):
        alone = {k: v[i].detach().requires_grad_(k in wanted) for k, v in stacked.items()}
        value = one(alone, batch.clone(), tape)
        assert_close(together[i], value.detach())
        slopes = torch.autograd.grad(value.sum(), [alone[k] for k in wanted])
        for grad, slope in zip(grads, slopes, strict=True):
            assert_close(grad[i], slope)


@each_loss
def test_traces_without_looking_at_values(name: str) -> None:
    """One traced program serves other parameters, another batch and other noise."""
    loss = build(name)

    example = batch_for(name)
    names, keys, shape = list(loss.tensors()), list(example.keys(True, True)), example.shape

    def one(bound: list[Tensor], entries: list[Tensor], tape: list[Tensor]) -> Tensor:
        data = TensorDict(dict(zip(keys, entries, strict=True)), shape)
        with loss.bind(dict(zip(names, bound, strict=True))):
            return losses_of(taped(tape, loss, data))

    runs = []
    for seed in (2, 3):
        data, held = batch_for(name, seed=seed), cases.perturb(CASES[name](), seed=seed).tensors()
        bound, entries = [held[k].detach() for k in names], [data[k] for k in keys]
        runs.append((bound, entries, tape_for(loss, data, seed=seed)))
    with torch.no_grad():
        program = make_fx(one)(*runs[0])
        for run in runs:
            assert_close(program(*run), one(*run))


@pytest.mark.parametrize("name", ENSEMBLES)
def test_targets_and_frozen_networks_pass_no_gradient_to_parameters(name: str) -> None:
    loss, data = build(name), batch_for(name)
    with loss.bind(cases.leaves(loss)):
        for target, detach in ((True, False), (False, True), (True, True), (False, False)):
            q = loss.run_network("qvalue_network", data, target=target, detach=detach)
            (values,) = q.values()
            assert values.requires_grad != (target or detach)
            if not hasattr(loss, "min_action"):  # the actor is stochastic
                mean = loss.distribution(data, target=target, detach=detach)
                mean = mean.logits if name == "discrete_sac" else mean.loc
                assert mean.requires_grad != (target or detach)
        target = loss.bootstrap(data, torch.ones(cases.N, requires_grad=True))
        assert not target.requires_grad


# copies of networks


@each_loss
def test_warning_about_targets_that_stand_still(name: str) -> None:
    loss, data = CASES[name](), batch_for(name)
    if not loss.delayed_networks():
        loss(data)  # warnings are errors
        with pytest.raises(NotImplementedError, match="no target networks"):
            SoftUpdate(loss, tau=0.1)
        return
    for _ in range(2):
        with pytest.warns(UserWarning, match="delayed target networks and no updater"):
            loss(data)
    HardUpdate(loss)
    loss(data)


@pytest.mark.parametrize("cls", [SACLoss, TD3BCLoss])
def test_copies_of_one_critic_differ_within_its_range(cls: type) -> None:
    actor = cases.stochastic() if cls is SACLoss else cases.deterministic()
    critic = cases.critic()
    weight = critic.module.linear.weight.detach()
    extra = {"action_spec": cases.spec(), "num_qvalue_nets": 4}
    found = cls(actor, critic, **extra).tensors()["qvalue_network_params.module.linear.weight"]
    assert found.shape == (4, *weight.shape)
    assert len(found.detach().unique()) == found.numel()
    assert weight.min() <= found.min()
    assert found.max() <= weight.max()


def test_list_of_critics_is_stacked_as_it_is() -> None:
    critics = [cases.critic(), cases.critic()]
    loss = SACLoss(cases.stochastic(), critics)
    for i, critic in enumerate(critics):
        for name in ("qvalue_network_params", "target_qvalue_network_params"):
            held = loss.tensors()[f"{name}.module.linear.weight"]
            assert_close(held[i], critic.module.linear.weight.detach())
    with pytest.raises(RuntimeError, match="qvalue_network: 2 networks given for 3"):
        SACLoss(cases.stochastic(), critics, num_qvalue_nets=3)


def shared() -> tuple[ProbabilisticActor, ValueOperator, ValueOperator]:
    """Actor, critic and value function that share their first layer."""
    encoder = nn.Linear(cases.OBS, 4)

    class Head(nn.Module):
        def __init__(self, extra: int, size: int) -> None:
            super().__init__()
            self.encoder, self.out = encoder, nn.Linear(4 + extra, size)

        def forward(self, observation: Tensor, *action: Tensor) -> Tensor:
            return self.out(torch.cat([self.encoder(observation), *action], -1))

    body = nn.Sequential(Head(0, 2 * cases.ACT), cases.MeanAndScale())
    actor = ProbabilisticActor(
        TensorDictModule(body, ["observation"], ["loc", "scale"]),
        ["loc", "scale"],
        spec=cases.spec(),
        distribution_class=TanhNormal,
    )
    critic = ValueOperator(Head(cases.ACT, 1), in_keys=["observation", "action"])
    return actor, critic, ValueOperator(Head(0, 1))


@pytest.mark.parametrize("separate", [False, True])
def test_shared_layers(separate: bool) -> None:
    """``separate_losses``: only the actor's loss trains what the critics share with it."""
    loss, data = IQLLoss(*shared(), separate_losses=separate), cases.batch()
    loss.mark_updated()
    terms = {"actor": loss.actor_loss, "value": loss.value_loss, "qvalue": loss.qvalue_loss}
    encoders = {k: v for k, v in loss.named_parameters() if "encoder.weight" in k}
    assert any(k.startswith("qvalue") for k in encoders) != separate
    own = loss.actor_network_params["module", "0", "module", "0", "encoder", "weight"]
    for term, method in terms.items():
        (grad,) = torch.autograd.grad(method(data)[0].sum(), own, allow_unused=True)
        assert (grad is not None) == (term == "actor" or (term == "value" and not separate))
    before = loss.run_network("qvalue_network", data)["state_action_value"]
    own.data.add_(1.0)
    after = loss.run_network("qvalue_network", data)["state_action_value"]
    assert torch.equal(before, after) != separate


def test_stateful_networks() -> None:
    loss, data = build("td3_bc"), cases.batch()
    net = loss.get_stateful_net("actor_network")
    expected = net(data.clone())["action"]
    assert_close(expected, loss.run_network("actor_network", data)["action"].detach())
    other = Actor(nn.Linear(cases.OBS, cases.ACT))
    loss.from_stateful_net("actor_network", other)
    assert_close(loss.run_network("actor_network", data)["action"], other(data)["action"].detach())
    kept = loss.tensors()["target_actor_network_params.module.weight"]
    assert not torch.equal(kept, other.module.weight)
    assert loss.get_stateful_net("actor_network", copy=False) is loss.actor_network


def test_evaluation_mode_reaches_the_networks() -> None:
    """Dropout in a network is off after ``loss.eval()``."""
    actor, data = Actor(nn.Sequential(nn.Linear(cases.OBS, cases.ACT), Dropout(0.5))), cases.batch()
    loss = BCLoss(actor)
    assert not torch.equal(loss(data)["loss_bc"], loss(data)["loss_bc"])
    loss.eval()
    assert torch.equal(loss(data)["loss_bc"], loss(data)["loss_bc"])
    loss.train()
    assert not torch.equal(loss(data)["loss_bc"], loss(data)["loss_bc"])


def test_layout_of_parameters() -> None:
    loss = CQLLoss(cases.stochastic(), cases.critic())
    assert "actor_network" in loss.__dict__
    assert "actor_network" not in dict(loss.named_modules())
    assert isinstance(loss.target_qvalue_network_params, TensorDictParams)
    online = loss.actor_network_params["module", "0", "module", "0", "weight"]
    target = loss.target_actor_network_params["module", "0", "module", "0", "weight"]
    assert target.data_ptr() == online.data_ptr()
    assert not target.requires_grad
    with pytest.raises(AttributeError):
        _ = loss.target_nothing_params
