"""Transitions over several steps, computed once per training (`bench.engine.problem`).

Windows of an episode come from `bench.engine.sampling.WindowSampler`, returns-to-go from
`bench.recipes.dt.table`."""

import torch
from tensordict import TensorDict
from torch import Tensor


def n_step(table: TensorDict, t: Tensor, n: int, gamma: float) -> TensorDict:
    """Each row of a training table with the n steps that begin there, fewer where the episode ends
    before.

    `t` int64 [rows] is 0 where an episode starts. Of the result, ("next", "reward") [rows, 1] is
    r_0 + gamma r_1 + ..., float32, summed in float64; the other entries of "next" and `valid_next`
    are those of the last of these steps, and `steps_to_next_obs` float32 [rows, 1] is how many
    there are. With it the losses of `rlobj` discount the value behind the last step by gamma to
    that power, unless that step terminated (Sutton & Barto 2018, equation 7.1). `ValueError` if n
    is below 1 or the table has not a row per `t`.
    """
    if n < 1 or len(table) != len(t):
        raise ValueError(f"n_step: n is {n}, with {len(table)} rows for {len(t)} steps")
    rows = torch.arange(len(t))
    last = torch.minimum(rows + n - 1, _episode_ends(t))
    rewards = table["next", "reward"].double()
    total = torch.zeros_like(rewards)
    for k in range(n):
        inside = (rows + k <= last).unsqueeze(-1)
        total += torch.where(inside, gamma**k * rewards[torch.minimum(rows + k, last)], 0)
    out = table.clone(recurse=False)
    out["next"] = table["next"][last].set("reward", total.float())
    steps = (last - rows + 1).float().unsqueeze(-1)
    return out.update({"valid_next": table["valid_next"][last], "steps_to_next_obs": steps})


def _episode_ends(t: Tensor) -> Tensor:
    """The row of the last step of each row's episode, int64 [rows]."""
    starts = (t == 0).nonzero().squeeze(-1)
    lengths = torch.diff(starts, append=torch.tensor([len(t)]))
    return (starts + lengths - 1).repeat_interleave(lengths)
