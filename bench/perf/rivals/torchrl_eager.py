"""TorchRL: its losses, modules, replay buffer and the update of its own training scripts.

Eager, and in its favour: transitions in memory, no logging, no ``item()``, CQL without Lagrange
multiplier. Clipping comes after the gradients it clips.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.work import Work, arrays, check_device, program

GAMMA, TAU, LR = 0.99, 0.005, 3e-4
WINDOW, SEQUENCES = 20, 64
Learner = tuple[Callable[[Any], None], list[torch.optim.Optimizer]]


def adam(parameters: Iterable[Tensor], lr: float = LR) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(parameters), lr=lr)


def leaves(parameters: Any) -> list[Tensor]:
    return list(parameters.values(True, True))


class Nets:
    """Networks of one work from torchrl.modules; everything is made on its device."""

    def __init__(self, work: Work, hidden: Sequence[int] = (256, 256)) -> None:
        from torchrl.data import Bounded

        self.work, self.hidden = work, list(hidden)
        self.spec = Bounded(low=-1.0, high=1.0, shape=(work.action,), device=work.device)

    def mlp(self, inputs: int, outputs: int) -> nn.Module:
        from torchrl.modules import MLP

        return MLP(
            in_features=inputs,
            out_features=outputs,
            num_cells=self.hidden,
            activation_class=nn.ReLU,
            device=self.work.device,
        )

    def deterministic(self) -> nn.Module:
        from torchrl.modules import TanhModule

        net = self.mlp(self.work.observation, self.work.action)
        return TensorDictSequential(
            TensorDictModule(net, in_keys=["observation"], out_keys=["param"]),
            TanhModule(in_keys=["param"], out_keys=["action"], spec=self.spec),
        )

    def stochastic(self) -> nn.Module:
        from torchrl.modules import ProbabilisticActor, TanhNormal

        net = nn.Sequential(
            self.mlp(self.work.observation, 2 * self.work.action), NormalParamExtractor()
        )
        return ProbabilisticActor(
            TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            spec=self.spec,
            distribution_class=TanhNormal,
            distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False},
        )

    def critic(self) -> nn.Module:
        from torchrl.modules import ValueOperator

        net = self.mlp(self.work.observation + self.work.action, 1)
        return ValueOperator(net, in_keys=["observation", "action"])

    def value(self) -> nn.Module:
        from torchrl.modules import ValueOperator

        return ValueOperator(self.mlp(self.work.observation, 1), in_keys=["observation"])


def td3_bc(work: Work) -> Learner:
    from torchrl.objectives import SoftUpdate, TD3BCLoss

    nets = Nets(work)
    loss = TD3BCLoss(
        nets.deterministic(),
        nets.critic(),
        action_spec=nets.spec,
        num_qvalue_nets=2,
        loss_function="l2",
        delay_actor=True,
        delay_qvalue=True,
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    targets = SoftUpdate(loss, eps=1 - TAU)
    actor_adam, critic_adam = (
        adam(leaves(p)) for p in (loss.actor_network_params, loss.qvalue_network_params)
    )
    count = 0

    def update(batch: Any) -> None:
        nonlocal count
        count += 1
        descend(loss.qvalue_loss(batch)[0], critic_adam)
        if count % 2 == 0:
            descend(loss.actor_loss(batch)[0], actor_adam)
            targets.step()

    return update, [actor_adam, critic_adam]


def descend(value: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def all_at_once(
    loss: Any, optimizers: list[torch.optim.Optimizer], terms: Sequence[str], delayed: bool = True
) -> Learner:
    """One backward of the sum of the terms, one step of the grouped optimizers."""
    from torchrl.objectives import SoftUpdate, group_optimizers

    optimizer = group_optimizers(*optimizers)
    targets = SoftUpdate(loss, eps=1 - TAU) if delayed else None

    def update(batch: Any) -> None:
        found = loss(batch)
        sum(found[t] for t in terms).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if targets is not None:
            targets.step()

    return update, optimizers


def iql(work: Work) -> Learner:
    from torchrl.objectives import IQLLoss

    nets = Nets(work)
    loss = IQLLoss(
        nets.stochastic(),
        nets.critic(),
        nets.value(),
        loss_function="l2",
        temperature=3.0,
        expectile=0.7,
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    parts = (loss.actor_network_params, loss.qvalue_network_params, loss.value_network_params)
    optimizers = [adam(leaves(p)) for p in parts]
    return all_at_once(loss, optimizers, ("loss_actor", "loss_value", "loss_qvalue"))


def cql(work: Work) -> Learner:
    from torchrl.objectives import CQLLoss

    nets = Nets(work, (256, 256, 256))
    loss = CQLLoss(
        nets.stochastic(),
        nets.critic(),
        loss_function="l2",
        action_spec=nets.spec,
        min_q_weight=10.0,
        num_random=10,
        with_lagrange=False,
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    optimizers = [
        adam(leaves(loss.actor_network_params), 3e-5),
        adam(leaves(loss.qvalue_network_params)),
        adam([loss.log_alpha], 3e-5),
    ]
    return all_at_once(loss, optimizers, ("loss_actor", "loss_qvalue", "loss_cql", "loss_alpha"))


def sac(work: Work) -> Learner:
    from torchrl.objectives import SACLoss

    nets = Nets(work)
    loss = SACLoss(nets.stochastic(), nets.critic(), loss_function="l2", action_spec=nets.spec)
    loss.to(work.device)  # before the optimizers see its temperature
    loss.make_value_estimator(gamma=GAMMA)
    optimizers = [
        adam(leaves(loss.actor_network_params)),
        adam(leaves(loss.qvalue_network_params)),
        adam([loss.log_alpha]),
    ]
    return all_at_once(loss, optimizers, ("loss_actor", "loss_qvalue", "loss_alpha"))


def bc(work: Work) -> Learner:
    from torchrl.objectives import BCLoss

    loss = BCLoss(Nets(work).deterministic(), loss_function="l2")
    optimizer = adam(leaves(loss.actor_network_params))
    return all_at_once(loss, [optimizer], ("loss_bc",), delayed=False)


def dt(work: Work) -> Learner:
    if find_spec("transformers") is None:
        raise Unavailable("torchrl's decision transformer needs transformers, which is not there")
    from torchrl.modules import DTActor, ProbabilisticActor, TanhDelta
    from torchrl.objectives import DTLoss

    config = DTActor.default_config()
    config.n_embd, config.n_layer, config.n_head, config.n_inner = 128, 3, 1, 512
    net = DTActor(work.observation, work.action, transformer_config=config, device=work.device)
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation", "taken", "return_to_go"], out_keys=["param"]),
        in_keys=["param"],
        spec=Nets(work).spec,
        distribution_class=TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )
    loss = DTLoss(actor, loss_function="l2")
    loss.set_keys(action_target="taken")
    weights = leaves(loss.actor_network_params)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-4)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 10_000, 1))

    def update(batch: Any) -> None:
        value = loss(batch.reshape(SEQUENCES, WINDOW))["loss"]
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.25)
        optimizer.step()
        warmup.step()

    return update, [optimizer]


LEARNERS = {"bc": bc, "sac": sac, "td3_bc": td3_bc, "iql": iql, "cql": cql, "dt": dt}


def replay_buffer(work: Work) -> Any:
    """Transitions, or windows of consecutive steps (a cheaper sampler than its script's)."""
    from torchrl.data import TensorDictReplayBuffer, TensorStorage
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement, SliceSampler

    found = {k: v.to(work.device) for k, v in arrays(work).items()}
    last = found["last"]
    rows: dict[str, Any] = {"observation": found["observation"]}
    if work.algorithm == "dt":
        rows |= {"taken": found["action"], "return_to_go": found["reward"], "last": last}
        sampler = SliceSampler(slice_len=WINDOW, end_key="last", cache_values=True)
        size = SEQUENCES * WINDOW
    else:
        rows["action"] = found["action"]
        rows["next"] = {
            "observation": found["after"],
            "reward": found["reward"],
            "done": last,
            "terminated": torch.zeros_like(last),
        }
        sampler, size = SamplerWithoutReplacement(), 256
    storage = TensorStorage(TensorDict(rows, [work.rows], device=work.device))
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=size, prefetch=4)


def build(request: dict[str, Any]) -> Program:
    warnings.simplefilter("ignore")
    work = Work(**request)
    work.only_one_seed()
    check_device(work.device)
    if work.algorithm not in LEARNERS:
        raise Unavailable(f"no loop for {work.algorithm} is written here")
    update, optimizers = LEARNERS[work.algorithm](work)
    buffer = replay_buffer(work)
    weights = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    return program(
        work, lambda: update(buffer.sample()), lambda: weights, ("torchrl", "tensordict")
    )


if __name__ == "__main__":
    sys.exit(serve(build))
