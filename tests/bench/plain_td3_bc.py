"""TD3+BC as one plain loop, to compare the engine's scores with.

Nothing of rlobj or bench is used: ``torch.nn`` modules, ``backward()``, two Adam optimizers, one
seed. It follows Fujimoto & Gu 2021, arXiv:2106.06860, with the authors' hyper-parameters, on a file
in D4RL's layout that holds ``next_observations``.

    python tests/bench/plain_td3_bc.py FILE ENV SEED LOW HIGH [STEPS]

FILE may be several, joined by "+". LOW and HIGH are D4RL's reference returns of the environment
(random, expert). Prints the normalised score of ten episodes every tenth of the run.
"""

import copy
import sys

import gymnasium
import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, GAMMA, TAU, ALPHA, NOISE, CLIP, EPISODES = 256, 0.99, 0.005, 2.5, 0.2, 0.5, 10


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    hidden = (nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(256, outputs))


def adam(*nets: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for n in nets for p in n.parameters()], lr=3e-4, fused=True)


class Plain:
    """The networks, their targets, and one update."""

    def __init__(self, observation: int, action: int) -> None:
        self.actor = nn.Sequential(mlp(observation, action), nn.Tanh())
        self.critics = nn.ModuleList([mlp(observation + action, 1) for _ in range(2)])
        self.targets = copy.deepcopy(nn.ModuleList([self.actor, *self.critics]))
        self.optimizers = adam(self.actor), adam(self.critics)

    def target(self, reward: Tensor, after: Tensor, terminal: Tensor) -> Tensor:
        actor, *critics = self.targets
        with torch.no_grad():
            action = actor(after)
            noise = (torch.randn_like(action) * NOISE).clamp(-CLIP, CLIP)
            pair = torch.cat([after, (action + noise).clamp(-1, 1)], 1)
            return reward + GAMMA * (1 - terminal) * torch.min(*(q(pair) for q in critics))

    def update(
        self, step: int, s: Tensor, a: Tensor, r: Tensor, after: Tensor, end: Tensor
    ) -> None:
        target = self.target(r, after, end)
        q_loss = sum(F.mse_loss(q(torch.cat([s, a], 1)), target) for q in self.critics)
        self.apply(1, q_loss)
        if step % 2 == 0:
            action = self.actor(s)
            q = self.critics[0](torch.cat([s, action], 1))
            weight = ALPHA / q.abs().mean().detach()
            self.apply(0, F.mse_loss(action, a) - weight * q.mean())
            with torch.no_grad():
                online = nn.ModuleList([self.actor, *self.critics]).parameters()
                torch._foreach_lerp_(list(self.targets.parameters()), list(online), TAU)

    def apply(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()


def returns(actor: nn.Module, envs: gymnasium.vector.VectorEnv, mean, std, first_seed: int):
    observation, _ = envs.reset(seed=[first_seed + i for i in range(EPISODES)])
    total, alive = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while alive.any():
        with torch.no_grad():
            action = actor(torch.from_numpy(((observation - mean) / std).astype("f4"))).numpy()
        observation, reward, terminated, truncated, _ = envs.step(action)
        total += reward * alive
        alive &= ~(terminated | truncated)
    return total


def main(file: str, env: str, seed: int, low: float, high: float, steps: int = 100_000) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    files = [h5py.File(f) for f in file.split("+")]
    data = [np.concatenate([f[k][:].astype("f4") for f in files]) for k in names]
    mean, std = data[0].mean(0), data[0].std(0) + 1e-3
    data[0], data[3] = (data[0] - mean) / std, (data[3] - mean) / std
    data = [torch.from_numpy(d if d.ndim == 2 else d[:, None]) for d in data]
    agent = Plain(data[0].shape[1], data[1].shape[1])
    envs = gymnasium.make_vec(env, num_envs=EPISODES, vectorization_mode="sync")
    scores = []
    for step in range(1, steps + 1):
        rows = torch.from_numpy(np.random.randint(0, len(data[0]), BATCH))
        agent.update(step, *(d[rows] for d in data))
        if step % (steps // 10) == 0:
            total = returns(agent.actor, envs, mean, std, 10_000 * seed + 100 * len(scores))
            scores.append(100 * (total.mean() - low) / (high - low))
            print(f"seed {seed} step {step}: {scores[-1]:.1f}", flush=True)
    print(f"seed {seed}: final {scores[-1]:.1f}, mean of the last five {np.mean(scores[5:]):.1f}")


if __name__ == "__main__":
    file, env, seed, low, high, *steps = sys.argv[1:]
    main(file, env, int(seed), float(low), float(high), *map(int, steps))
