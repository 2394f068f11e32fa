"""Each loss as a short script: build networks, make a batch, call it both ways, train a step.

The scripts use the names, arguments and entries that a script written for torchrl uses.
"""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn

import rlobj
from rlobj import DQNLoss, LossModule, SoftUpdate, ValueEstimators
from rlobj.envs.model_based.dreamer import DreamerEnv
from rlobj.modules import (
    MLP,
    Actor,
    ActorValueOperator,
    DistributionalQValueActor,
    DreamerActor,
    DTActor,
    MultiAgentMLP,
    ObsDecoder,
    ObsEncoder,
    OneHotCategorical,
    OnlineDTActor,
    ProbabilisticActor,
    QMixer,
    QValueActor,
    QValueModule,
    RSSMPosterior,
    RSSMPrior,
    RSSMRollout,
    SafeModule,
    TanhDelta,
    TanhNormal,
    TruncatedNormal,
    ValueOperator,
    VDNMixer,
    WorldModelWrapper,
)
from rlobj.specs import Bounded, Categorical, Composite, OneHot, Unbounded

N_ACT, N_OBS = 4, 3


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(N_OBS + N_ACT, 1)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.linear(torch.cat([obs, act], -1))


def box() -> Bounded:
    return Bounded(-torch.ones(N_ACT), torch.ones(N_ACT), (N_ACT,))


def deterministic() -> Actor:
    return Actor(module=nn.Linear(N_OBS, N_ACT), spec=box())


def stochastic(distribution: type = TanhNormal) -> ProbabilisticActor:
    net = nn.Sequential(nn.Linear(N_OBS, 2 * N_ACT), NormalParamExtractor())
    module = SafeModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticActor(
        module=module, in_keys=["loc", "scale"], spec=box(), distribution_class=distribution
    )


def over_one_hots() -> ProbabilisticActor:
    module = TensorDictModule(nn.Linear(N_OBS, N_ACT), ["observation"], ["logits"])
    return ProbabilisticActor(
        module=module,
        in_keys=["logits"],
        out_keys=["action"],
        spec=OneHot(N_ACT),
        distribution_class=OneHotCategorical,
    )


def q() -> ValueOperator:
    return ValueOperator(module=Critic(), in_keys=["observation", "action"])


def q_of_all(key: str) -> ValueOperator:
    return ValueOperator(nn.Linear(N_OBS, N_ACT), in_keys=["observation"], out_keys=[key])


def v() -> ValueOperator:
    return ValueOperator(module=MLP(N_OBS, 1, num_cells=[5]), in_keys=["observation"])


def greedy() -> QValueActor:
    net = nn.Sequential(nn.Linear(N_OBS, 5), nn.Tanh(), nn.Linear(5, N_ACT))
    return QValueActor(net, in_keys=["observation"], spec=OneHot(N_ACT))


class Atoms(nn.Linear):
    def forward(self, observation: Tensor) -> Tensor:
        return super().forward(observation).unflatten(-1, (7, N_ACT))


def c51() -> DistributionalQValueActor:
    support = torch.linspace(-2, 2, 7)
    module = TensorDictModule(Atoms(N_OBS, 7 * N_ACT), ["observation"], ["action_value"])
    return DistributionalQValueActor(module, support, spec=Categorical(N_ACT))


CONTINUOUS: dict[str, Callable[[], LossModule]] = {
    "DDPG": lambda: rlobj.DDPGLoss(deterministic(), q()),
    "TD3": lambda: rlobj.TD3Loss(deterministic(), q(), action_spec=box()),
    "TD3+BC": lambda: rlobj.TD3BCLoss(a := deterministic(), q(), action_spec=a.spec),
    "ReBRAC": lambda: rlobj.ReBRACLoss(a := deterministic(), q(), action_spec=a.spec),
    "SAC": lambda: rlobj.SACLoss(stochastic(), q(), v()),
    "SAC, second version": lambda: rlobj.SACLoss(stochastic(TruncatedNormal), q()),
    "REDQ": lambda: rlobj.REDQLoss(stochastic(), q()),
    "EDAC": lambda: rlobj.EDACLoss(stochastic(), q(), num_qvalue_nets=3),
    "IQL": lambda: rlobj.IQLLoss(stochastic(), q(), v()),
    "XQL": lambda: rlobj.XQLLoss(stochastic(), q(), v(), num_random=1),
    "CQL": lambda: rlobj.CQLLoss(stochastic(), q()),
    "Cal-QL": lambda: rlobj.CalQLLoss(stochastic(), q()),
    "AWAC": lambda: rlobj.AWACLoss(stochastic(), q()),
    "BC": lambda: rlobj.BCLoss(stochastic()),
}
DISCRETE: dict[str, Callable[[], LossModule]] = {
    "DQN": lambda: DQNLoss(greedy(), action_space="one-hot"),
    "DQN of a plain network": lambda: DQNLoss(nn.Linear(N_OBS, N_ACT), action_space=OneHot(N_ACT)),
    "C51": lambda: rlobj.DistributionalDQNLoss(c51(), gamma=0.9),
    "discrete CQL": lambda: rlobj.DiscreteCQLLoss(greedy()),
    "discrete SAC": lambda: rlobj.DiscreteSACLoss(
        over_one_hots(), q_of_all("action_value"), action_space=OneHot(N_ACT), num_actions=N_ACT
    ),
    "discrete IQL": lambda: rlobj.DiscreteIQLLoss(
        over_one_hots(), q_of_all("state_action_value"), v()
    ),
}


def batch(spec: Bounded | OneHot | Categorical) -> TensorDict:
    size = [2]
    data = {
        "observation": torch.randn(*size, N_OBS),
        "action": spec.rand(size),
        ("next", "done"): torch.zeros(*size, 1, dtype=torch.bool),
        ("next", "terminated"): torch.zeros(*size, 1, dtype=torch.bool),
        ("next", "reward"): torch.randn(*size, 1),
        ("next", "observation"): torch.randn(*size, N_OBS),
    }
    return TensorDict(data, size)


def train_a_step(loss: LossModule, data: TensorDict) -> None:
    """The loop of a training script: every parameter that a loss reaches moves."""
    updater = SoftUpdate(loss, tau=0.5) if loss.delayed_networks() else None
    before = {k: p.detach().clone() for k, p in loss.named_parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    values = loss(data)
    sum(x for k, x in values.items() if k.startswith("loss")).backward()
    optimizer.step()
    if updater is not None:
        updater.step()
    moved = [k for k, p in loss.named_parameters() if not torch.equal(p, before[k])]
    assert moved == list(before)


def check(loss: LossModule, data: TensorDict) -> None:
    train_a_step(loss, data.clone())
    given = data.select(*loss.in_keys, strict=False).items(True, True)
    named = {k if isinstance(k, str) else "_".join(k): x for k, x in given}
    found = loss(**named)
    assert len(found if isinstance(found, tuple) else (found,)) == len(loss.out_keys)
    loss.select_out_keys(loss.out_keys[0])
    loss(**named).sum().backward()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_actions(name: str) -> None:
    data = batch(box())
    if name == "ReBRAC":
        data["next", "action"] = box().rand([2])
    if name == "Cal-QL":
        data["mc_return"] = torch.randn(2)
    check(CONTINUOUS[name](), data)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_actions(name: str) -> None:
    check(DISCRETE[name](), batch(Categorical(N_ACT) if name == "C51" else OneHot(N_ACT)))


SMALL = DTActor.default_config()
SMALL.n_embd, SMALL.n_inner, SMALL.n_layer, SMALL.n_head = 8, 16, 1, 2


@pytest.mark.parametrize("online", [False, True])
def test_decision_transformers(online: bool) -> None:
    keys = ["observation", "action", "return_to_go"]
    if online:
        net = TensorDictModule(OnlineDTActor(N_OBS, N_ACT, SMALL), keys, ["loc", "scale"])
        params, distribution = ["loc", "scale"], TanhNormal
    else:
        net = TensorDictModule(DTActor(N_OBS, N_ACT, SMALL), keys, ["param"])
        params, distribution = ["param"], TanhDelta
    actor = ProbabilisticActor(
        net,
        in_keys=params,
        spec=Composite(action=box()),
        distribution_class=distribution,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )
    loss = rlobj.OnlineDTLoss(actor) if online else rlobj.DTLoss(actor)
    sizes = {"observation": N_OBS, "action": N_ACT, "return_to_go": 1}
    data = TensorDict({k: torch.randn(2, 5, n) for k, n in sizes.items()}, [2, 5])
    data["action"] = data["action"].tanh()
    data["collector", "mask"] = torch.ones(2, 5, dtype=torch.bool)
    check(loss, data)


def test_choosing_a_value_estimator() -> None:
    loss = DQNLoss(nn.Linear(N_OBS, N_ACT), action_space="one-hot")
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.9, lmbda=0.9)
    assert loss.value_type is ValueEstimators.TDLambda
    loss.make_value_estimator(gamma=0.8)
    assert loss.value_type is ValueEstimators.TD0
    loss.make_value_estimator(ValueEstimators.TD1, gamma=0.9)
    loss.make_value_estimator(loss.value_type, gamma=0.7)
    assert (loss.value_type, loss.value_estimator.gamma.item()) == (ValueEstimators.TD1, 0.7)


def test_a_trunk_that_actor_and_critic_share() -> None:
    """separate_losses: the critic's term leaves the trunk to the actor's."""
    trunk = SafeModule(nn.Linear(N_OBS, 6), in_keys=["observation"], out_keys=["hidden"])
    head = SafeModule(
        nn.Sequential(nn.Linear(6, 2 * N_ACT), NormalParamExtractor()), ["hidden"], ["loc", "scale"]
    )
    actor = ProbabilisticActor(
        TensorDictSequential(trunk, head), ["loc", "scale"],
        distribution_class=TanhNormal, spec=box(),
    )  # fmt: skip
    value = TensorDictSequential(trunk, ValueOperator(nn.Linear(6, 1), in_keys=["hidden"]))
    for separate in (False, True):
        loss = rlobj.IQLLoss(actor, q(), value, separate_losses=separate)
        loss.mark_updated()
        loss(batch(box()))["loss_value"].backward()
        shared = loss.actor_network_params["module", "0", "module", "0", "module", "weight"]
        assert (shared.grad is None) == separate
        trunk.zero_grad(set_to_none=True)


ON_POLICY: dict[str, Callable[..., LossModule]] = {
    "PPO": rlobj.PPOLoss,
    "ClipPPO": rlobj.ClipPPOLoss,
    "KLPENPPO": rlobj.KLPENPPOLoss,
    "A2C": lambda actor, value: rlobj.A2CLoss(actor, value, loss_critic_type="l2"),
    "Reinforce": rlobj.ReinforceLoss,
}


@pytest.mark.parametrize("name", ON_POLICY)
def test_on_policy(name: str) -> None:
    """Networks with a layer in common, and advantages that the loss computes."""
    layer = nn.Linear(N_OBS, 5)
    net = nn.Sequential(layer, nn.Linear(5, 2 * N_ACT), NormalParamExtractor())
    module = SafeModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(
        module=module, distribution_class=TanhNormal, in_keys=["loc", "scale"], spec=box()
    )
    value = ValueOperator(module=nn.Sequential(layer, nn.Linear(5, 1)), in_keys=["observation"])
    loss, data = ON_POLICY[name](actor, value), batch(box())
    data["loc"], data["scale"] = torch.zeros(2, N_ACT), torch.ones(2, N_ACT)
    data["sampleLogProb"] = torch.randn(2) / 10
    loss.set_keys(sample_log_prob="sampleLogProb")
    check(loss, data)


@pytest.mark.parametrize("option", [1, 2])
def test_clip_ppo_on_a_trunk(option: int) -> None:
    """The trunk called by actor and critic each, or once for both."""
    common = SafeModule(nn.Linear(N_OBS, 6), in_keys=["observation"], out_keys=["hidden"])
    net = nn.Sequential(nn.Linear(6, 2 * N_ACT), NormalParamExtractor())
    actor_head = ProbabilisticActor(
        SafeModule(net, ["hidden"], ["loc", "scale"]), ["loc", "scale"],
        distribution_class=TanhNormal, return_log_prob=True,
    )  # fmt: skip
    value_head = ValueOperator(nn.Linear(6, 1), in_keys=["hidden"])
    model = ActorValueOperator(common, actor_head, value_head)
    data = model(batch(box())).detach()
    if option == 1:
        loss = rlobj.ClipPPOLoss(model.get_policy_operator(), model.get_value_operator())
    else:
        actor = ProbabilisticTensorDictSequential(model, actor_head)
        loss = rlobj.ClipPPOLoss(actor, value_head)
    data["advantage"], data["value_target"] = torch.randn(2, 1), torch.randn(2, 1)
    train_a_step(loss, data)


def test_a_team() -> None:
    """Agents with a Q-network each, or one that they share, under both mixers."""
    crew, state = 4, (2, 3)
    own = MultiAgentMLP(N_OBS, N_ACT, crew, centralized=False, share_params=False, depth=1)
    for net, mixer in ((own, QMixer(state, 8, crew, "cpu")), (nn.Linear(N_OBS, N_ACT), None)):
        keys = [("agents", k) for k in ("action", "action_value", "chosen_action_value")]
        module = TensorDictModule(net, [("agents", "observation")], [keys[1]])
        greedy = QValueModule("categorical", action_value_key=keys[1], out_keys=keys)
        policy = TensorDictSequential(module, greedy)
        mixing = TensorDictModule(
            mixer or VDNMixer(n_agents=crew, device="cpu"),
            in_keys=[keys[2], *(["state"] if mixer else [])],
            out_keys=["chosen_action_value"],
        )
        seen = {("agents", "observation"): torch.randn(2, crew, N_OBS)}
        seen["state"] = torch.randn(2, *state)
        flag = torch.zeros(2, 1, dtype=torch.bool)
        after = {**seen, "reward": torch.randn(2, 1), "done": flag, "terminated": flag}
        data = TensorDict({**seen, "next": TensorDict(after, [2])}, [2])
        check(rlobj.QMixerLoss(policy, mixing, action_space="categorical"), policy(data))


def test_a_world_model_and_what_is_learned_in_it() -> None:
    """Dreamer: windows of images train the model, its states the policy, its dreams the values."""
    state, belief, after = 3, 6, [("next", "state"), ("next", "belief")]
    prior = RSSMPrior(box(), hidden_dim=belief, rnn_hidden_dim=belief, state_dim=state)
    written = [("next", k) for k in ("prior_mean", "prior_std")]
    observed = [("next", k) for k in ("posterior_mean", "posterior_std", "state")]
    seen, read = ("next", "encoded_latents"), ["state", "belief"]
    model = WorldModelWrapper(
        TensorDictSequential(
            TensorDictModule(ObsEncoder(channels=2), [("next", "pixels")], [seen]),
            RSSMRollout(
                TensorDictModule(prior, [*read, "action"], [*written, "_", ("next", "belief")]),
                TensorDictModule(RSSMPosterior(state_dim=state), [after[1], seen], observed),
            ),
            TensorDictModule(ObsDecoder(channels=2), after, [("next", "reco_pixels")]),
        ),
        TensorDictModule(MLP(out_features=1, depth=1), after, [("next", "reward")]),
    )
    dreamed = TensorDictModule(prior, [*read, "action"], ["_", "_", *read])
    reward = TensorDictModule(model.get_reward_operator().module, read, ["reward"])
    world = DreamerEnv(WorldModelWrapper(dreamed, reward), (state,), (belief,))
    policy = ProbabilisticActor(
        TensorDictModule(DreamerActor(N_ACT, depth=1), read, ["loc", "scale"]),
        ["loc", "scale"],
        spec=Composite(action=box()),
        distribution_class=TanhNormal,
        distribution_kwargs={"tanh_loc": True},
    )
    value = TensorDictModule(MLP(out_features=1, depth=1), read, ["state_value"])
    sizes = {"state": (state,), "belief": (belief,), "action": (N_ACT,)}
    sizes |= {("next", "pixels"): (3, 64, 64), ("next", "reward"): (1,)}
    data = TensorDict({k: torch.randn(2, 5, *size) for k, size in sizes.items()}, [2, 5])
    value(policy(model(data.clone())))  # sizes that the first inputs decide

    model_loss = rlobj.DreamerModelLoss(model, free_nats=0)
    actor_loss = rlobj.DreamerActorLoss(policy, value, world, imagination_horizon=4)
    actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=0.95)
    value_loss = rlobj.DreamerValueLoss(value)
    for loss, net in ((model_loss, model), (actor_loss, policy), (value_loss, value)):
        before = [p.detach().clone() for p in net.parameters()]
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        optimizer.zero_grad()
        losses, data = loss(data)
        sum(losses.values()).backward()
        optimizer.step()
        assert not any(map(torch.equal, net.parameters(), before))
        data = data.select("state", "belief").reshape(-1) if loss is model_loss else data


def test_an_unbounded_action() -> None:
    spec = Composite(action=Unbounded(N_ACT), observation=Unbounded(N_OBS))
    drawn = spec.rand([3])
    assert spec.is_in(drawn)
    actor = Actor(nn.Linear(N_OBS, N_ACT), spec=spec["action"])
    assert actor(drawn)["action"].shape == (3, N_ACT)
    assert actor.spec.is_in(drawn.select("action"))
