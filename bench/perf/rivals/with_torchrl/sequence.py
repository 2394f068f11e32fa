"""Updates on windows of consecutive steps."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from bench.perf.protocol import Unavailable
from bench.perf.rivals.with_torchrl.parts import Learner, Nets, adam, leaves
from bench.perf.work import Work

WINDOW = {"dt": 20, "online_dt": 20, "dreamer": 50}  # steps


def transformer(work: Work, cls: Any, sizes: tuple[int, int, int], *out: str) -> nn.Module:
    """TorchRL's (online) decision transformer of so many numbers, layers and heads."""
    if find_spec("transformers") is None:
        raise Unavailable("torchrl's decision transformer needs transformers, which is not there")
    config = cls.default_config()
    config.n_embd, config.n_layer, config.n_head = sizes
    config.n_inner = 4 * config.n_embd
    net = cls(work.observation, work.action, transformer_config=config, device=work.device)
    read: list[NestedKey] = ["observation", "taken", "return_to_go"]
    return TensorDictModule(net, in_keys=read, out_keys=list(out))


def clipped(
    work: Work, loss: Any, terms: tuple[str, ...], decay: float, more: list[Any]
) -> Learner:
    """AdamW under a warm-up, with clipped gradients."""
    weights = leaves(loss.actor_network_params)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=decay)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 10_000, 1))
    optimizers = [optimizer, *more]

    def update(batch: Any) -> None:
        found = loss(batch.reshape(work.batch, WINDOW[work.algorithm]))
        for one in optimizers:
            one.zero_grad()
        sum(found[t] for t in terms).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.25)
        for one in optimizers:
            one.step()
        warmup.step()

    return update, optimizers


def dt(work: Work) -> Learner:
    from torchrl.modules import DTActor, ProbabilisticActor, TanhDelta
    from torchrl.objectives import DTLoss

    actor = ProbabilisticActor(
        transformer(work, DTActor, (128, 3, 1), "param"),
        in_keys=["param"],
        spec=Nets(work).spec,
        distribution_class=TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )
    loss = DTLoss(actor, loss_function="l2")
    loss.set_keys(action_target="taken")
    return clipped(work, loss, ("loss",), 1e-4, [])


def online_dt(work: Work) -> Learner:
    from torchrl.modules import OnlineDTActor, ProbabilisticActor, TanhNormal
    from torchrl.objectives import OnlineDTLoss

    actor = ProbabilisticActor(
        transformer(work, OnlineDTActor, (512, 4, 4), "loc", "scale"),
        in_keys=["loc", "scale"],
        spec=Nets(work).spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False},
    )
    loss = OnlineDTLoss(actor, alpha_init=0.1, target_entropy=-float(work.action)).to(work.device)
    loss.set_keys(action_target="taken")
    terms = ("loss_log_likelihood", "loss_entropy", "loss_alpha")
    return clipped(work, loss, terms, 5e-4, [adam([loss.log_alpha], 1e-4)])


BELIEF, STATE, WIDTH = 200, 30, 400
SEEN = ("next", "observation")
LATENT: list[NestedKey] = ["state", "belief"]
AFTER: list[NestedKey] = [("next", "state"), ("next", "belief")]


class World:
    """Dreamer's networks and the environment that it dreams of."""

    def __init__(self, work: Work) -> None:
        from torchrl.modules import RSSMPrior, WorldModelWrapper

        self.work, self.spec = work, Nets(work).spec
        self.prior = RSSMPrior(
            self.spec,
            hidden_dim=BELIEF,
            rnn_hidden_dim=BELIEF,
            state_dim=STATE,
            action_dim=work.action,
            device=work.device,
        )
        reward = self.dense(2, 1)
        self.value = TensorDictModule(self.dense(3, 1), LATENT, ["state_value"])
        self.model = WorldModelWrapper(
            self.rollout(), TensorDictModule(reward, AFTER, [("next", "reward")])
        )
        dynamics = TensorDictModule(self.prior, [*LATENT, "action"], ["_", "_", *LATENT])
        earned = TensorDictModule(reward, LATENT, ["reward"])
        self.env = self.dream(WorldModelWrapper(TensorDictSequential(dynamics), earned))

    def dense(self, depth: int, outputs: int, inputs: int = STATE + BELIEF) -> nn.Module:
        from torchrl.modules import MLP

        return MLP(inputs, outputs, depth, WIDTH, nn.ELU, device=self.work.device)

    def rollout(self) -> nn.Module:
        from torchrl.modules import RSSMPosterior, RSSMRollout

        embed = nn.Sequential(self.dense(1, WIDTH, self.work.observation), nn.ELU())
        posterior = RSSMPosterior(
            hidden_dim=BELIEF,
            state_dim=STATE,
            rnn_hidden_dim=BELIEF,
            obs_embed_dim=WIDTH,
            device=self.work.device,
        )
        moments: list[NestedKey] = [("next", k) for k in ("prior_mean", "prior_std")]
        found: list[NestedKey] = [("next", k) for k in ("posterior_mean", "posterior_std", "state")]
        seen = ("next", "encoded_latents")
        return TensorDictSequential(
            TensorDictModule(embed, [SEEN], [seen]),
            RSSMRollout(
                TensorDictModule(self.prior, [*LATENT, "action"], [*moments, "_", AFTER[1]]),
                TensorDictModule(posterior, [AFTER[1], seen], found),
            ),
            TensorDictModule(
                self.dense(2, self.work.observation), AFTER, [("next", "reconstruction")]
            ),
        )

    def dream(self, model: nn.Module) -> Any:
        from torchrl.data import Composite, Unbounded
        from torchrl.envs.model_based.dreamer import DreamerEnv

        env = DreamerEnv(model, (STATE,), (BELIEF,), device=self.work.device)
        sizes = {"state": Unbounded(STATE), "belief": Unbounded(BELIEF)}
        env.observation_spec, env.state_spec = Composite(sizes), Composite(sizes)
        env.action_spec = Composite(action=Unbounded(self.work.action))
        env.reward_spec = Composite(reward=Unbounded(1))
        return env

    def actor(self) -> nn.Module:
        from torchrl.modules import DreamerActor, ProbabilisticActor, TanhNormal

        net = DreamerActor(self.work.action, num_cells=WIDTH, device=self.work.device)
        net(*(torch.zeros(1, n, device=self.work.device) for n in (STATE, BELIEF)))
        return ProbabilisticActor(
            TensorDictModule(net, LATENT, ["loc", "scale"]),
            ["loc", "scale"],
            spec=self.spec,
            distribution_class=TanhNormal,
            distribution_kwargs={"tanh_loc": True},
        )


def dreamer(work: Work) -> Learner:
    """Model, actor and value function one after the other, as in TorchRL's script."""
    from torchrl.objectives import DreamerActorLoss, DreamerModelLoss, DreamerValueLoss

    world = World(work)
    model = DreamerModelLoss(
        world.model, lambda_reco=0.5, lambda_reward=0.5, free_nats=3, delayed_clamp=True
    )
    model.set_keys(pixels="observation", reco_pixels="reconstruction")
    actor_net = world.actor()
    actor = DreamerActorLoss(actor_net, world.value, world.env, imagination_horizon=15)
    actor.make_value_estimator(gamma=0.99, lmbda=0.95)
    value = DreamerValueLoss(world.value, gamma=0.99)
    trained = [(world.model, 6e-4), (actor_net, 8e-5), (world.value, 8e-5)]
    optimizers = [adam(net.parameters(), lr) for net, lr in trained]

    def step(i: int, losses: Any) -> None:
        optimizers[i].zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(list(trained[i][0].parameters()), 100.0)
        optimizers[i].step()

    def update(batch: Any) -> None:
        data = batch.reshape(work.batch, WINDOW["dreamer"])
        for name, size in (("state", STATE), ("belief", BELIEF)):
            data[name] = torch.zeros(*data.shape, size, device=work.device)
        found, watched = model(data)
        step(0, found)
        found, imagined = actor(watched.detach().reshape(-1))
        step(1, found)
        step(2, value(imagined)[0])

    return update, optimizers


def steps(work: Work, rows: dict[str, Any]) -> dict[str, Any]:
    """What a window holds of each step; rewards stand in for returns-to-go."""
    seen, taken = rows["observation"], rows["action"]
    if work.algorithm == "dreamer":
        return {"action": taken, "next": {"observation": seen, "reward": rows["next"]["reward"]}}
    return {"observation": seen, "taken": taken, "return_to_go": rows["next"]["reward"]}


LEARNERS = {"dt": dt, "online_dt": online_dt, "dreamer": dreamer}
