"""What one eager update costs in a training script: torchrl's losses against ours, side by side.

The whole update of TD3+BC, IQL and CQL(H): losses, backward, fused Adam, target update. Networks
and batches are tiny, so that the libraries' own work is what is measured. Both libraries take turns
in one process on one thread; the figure is the median over rounds of CPU time per update.

    python tests/parity/overhead.py [--rounds 15] [--updates 100] [--at-most 0.5]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from tests.parity.harness import Library, libraries, transitions

OBSERVATION, ACTION, WIDTH, BATCH = 4, 2, 8, 8


class Critic(nn.Module):
    """Q(s, a) on the concatenated pair."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(OBSERVATION + ACTION, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([observation, action], -1))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, outputs),
    )


def critic(lib: Library) -> nn.Module:
    return lib.modules.ValueOperator(Critic(), in_keys=["observation", "action"])


def stochastic(lib: Library) -> nn.Module:
    from tensordict.nn import TensorDictModule

    body = nn.Sequential(mlp(OBSERVATION, 2 * ACTION), lib.modules.NormalParamExtractor())
    return lib.modules.ProbabilisticActor(
        TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=bounds(lib),
        distribution_class=lib.modules.TanhNormal,
    )


def bounds(lib: Library) -> object:
    return lib.specs.Bounded(-torch.ones(ACTION), torch.ones(ACTION), (ACTION,))


def td3_bc(lib: Library) -> nn.Module:
    body = nn.Sequential(mlp(OBSERVATION, ACTION), nn.Tanh())
    actor = lib.modules.Actor(body, spec=bounds(lib))
    return lib.losses.TD3BCLoss(actor, critic(lib), action_spec=bounds(lib))


def iql(lib: Library) -> nn.Module:
    value = lib.modules.ValueOperator(mlp(OBSERVATION, 1), in_keys=["observation"])
    return lib.losses.IQLLoss(stochastic(lib), critic(lib), value)


def cql(lib: Library) -> nn.Module:
    return lib.losses.CQLLoss(stochastic(lib), critic(lib), action_spec=bounds(lib))


LOSSES: dict[str, Callable[[Library], nn.Module]] = {"TD3+BC": td3_bc, "IQL": iql, "CQL": cql}


def updates(lib: Library, build: Callable[[Library], nn.Module]) -> Callable[[int], None]:
    """A function that makes n updates."""
    torch.manual_seed(0)
    loss = build(lib)
    updater = lib.losses.SoftUpdate(loss, tau=0.005)
    params = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=1e-4, fused=True)
    data = transitions(BATCH, observation=OBSERVATION, action=ACTION)

    def run(n: int) -> None:
        for _ in range(n):
            out = loss(data.copy())
            optimizer.zero_grad()
            sum(v for k, v in out.items() if k.startswith("loss")).backward()
            optimizer.step()
            updater.step()

    return run


def cpu_time(run: Callable[[int], None], n: int) -> float:
    start = time.process_time()
    run(n)
    return (time.process_time() - start) / n * 1e3


def measure(rounds: int, n: int) -> dict[str, tuple[float, float]]:
    """ms of CPU time per update, (torchrl, rlobj), by loss."""
    found = {}
    for name, build in LOSSES.items():
        runs = [updates(lib, build) for lib in libraries()]
        for run in runs:
            run(10)
        times = [[cpu_time(run, n) for run in runs] for _ in range(rounds)]
        theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
        found[name] = (theirs, ours)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--at-most", type=float, help="fail where the ratio is higher")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| loss | torchrl ms | rlobj ms | ratio |\n|---|---|---|---|")
    found = measure(args.rounds, args.updates)
    for name, (theirs, ours) in found.items():
        print(f"| {name} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} |")
    slow = [n for n, (theirs, ours) in found.items() if ours / theirs > (args.at_most or math.inf)]
    if slow:
        sys.exit(f"error: more than {args.at_most} of torchrl's time: {', '.join(slow)}")


if __name__ == "__main__":
    main()
