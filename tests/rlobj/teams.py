"""Losses, batches and slow arithmetic of a team of agents; the counterpart of ``discrete``."""

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rlobj import LossModule, QMixerLoss
from rlobj.modules import MultiAgentMLP, QMixer, QValueActor, VDNMixer
from rlobj.specs import OneHot

AGENTS, OBS, ACTIONS, STATE, WIDTH, N = 2, 3, 4, 5, 3, 8


def local(share: bool = False, space: str = "one_hot") -> QValueActor:
    net = MultiAgentMLP(
        OBS, ACTIONS, AGENTS, centralized=False, share_params=share, depth=0, num_cells=[]
    )
    return QValueActor(
        TensorDictModule(net, [("agents", "observation")], [("agents", "action_value")]),
        action_space=space,
        spec=OneHot(ACTIONS, (AGENTS, ACTIONS)) if space == "one_hot" else None,
        action_key=("agents", "action"),
        action_value_key=("agents", "action_value"),
        chosen_action_value_key=("agents", "chosen_action_value"),
    )


def mixer(kind: str) -> TensorDictModule:
    net = VDNMixer(AGENTS, "cpu") if kind == "vdn" else QMixer((STATE,), WIDTH, AGENTS, "cpu")
    read = [("agents", "chosen_action_value"), *([] if kind == "vdn" else ["state"])]
    return TensorDictModule(net, read, ["chosen_action_value"])


def qmix(**kwargs: object) -> LossModule:
    return QMixerLoss(local(), mixer("qmix"), **kwargs)


def vdn(**kwargs: object) -> LossModule:
    return QMixerLoss(local(share=True, space="categorical"), mixer("vdn"), **kwargs)


TEAMS: dict[str, Callable[..., LossModule]] = {"qmixer": qmix, "qmixer_vdn": vdn}


def batch(name: str = "qmixer", seed: int = 0, n: int = N) -> TensorDict:
    """Transitions; the second is terminated, the third truncated (done, value still counts)."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.zeros(2, n, 1, dtype=torch.bool)
    flags[:, 1:2], flags[0, 2:3] = True, True
    seen, after, score = (
        torch.randn(n, AGENTS, width, generator=generator) for width in (OBS, OBS, ACTIONS)
    )
    state, next_state, reward = (
        torch.randn(n, width, generator=generator) for width in (STATE, STATE, 1)
    )
    index = score.argmax(-1)
    action = index if name == "qmixer_vdn" else nn.functional.one_hot(index, ACTIONS)
    states = {} if name == "qmixer_vdn" else {"state": state, ("next", "state"): next_state}
    return TensorDict(
        {
            ("agents", "observation"): seen,
            ("agents", "action"): action,
            ("next", "agents", "observation"): after,
            ("next", "reward"): 2 * reward,
            ("next", "done"): flags[0],
            ("next", "terminated"): flags[1],
            **states,
        },
        [n],
    )


def rows(data: TensorDict) -> list[dict]:
    """The batch as one dict of plain numbers per transition."""
    out = []
    for row in data:
        action, after = row["agents", "action"], row["next"]
        out.append(
            {
                "o": row["agents", "observation"].tolist(),
                "a": (action.argmax(-1) if action.ndim == 2 else action).tolist(),
                "o2": after["agents", "observation"].tolist(),
                "s": row["state"].tolist() if "state" in row else [],
                "s2": after["state"].tolist() if "state" in after else [],
                "r": after["reward"].item(),
                "end": after["terminated"].item(),
            }
        )
    return out


def affine(layer: tuple[Tensor, Tensor], x: Sequence[float]) -> list[float]:
    weight, bias = (t.tolist() for t in layer)
    return [
        sum(w * v for w, v in zip(r, x, strict=True)) + b for r, b in zip(weight, bias, strict=True)
    ]


def mixed(layers: dict[str, tuple[Tensor, Tensor]], q: Sequence[float], s: list[float]) -> float:
    """Q_tot by loops: the sum without layers, else the mixing network of QMIX."""
    if not layers:
        return sum(q)
    first, bias, final = (affine(layers[k], s) for k in ("hyper_w_1", "hyper_b_1", "hyper_w_final"))
    total = affine(layers["V.2"], [max(x, 0) for x in affine(layers["V.0"], s)])[0]
    for j in range(WIDTH):
        x = bias[j] + sum(abs(first[i * WIDTH + j]) * q[i] for i in range(AGENTS))
        total += abs(final[j]) * (x if x > 0 else math.exp(x) - 1)
    return total


# what test_common expects

_AFTER = [("next", k) for k in ("reward", "done", "terminated")]
_SEEN = {("agents", "observation"), ("agents", "action"), ("next", "agents", "observation")}
IN_KEYS = {
    "qmixer": {*_SEEN, *_AFTER, "state", ("next", "state")},
    "qmixer_vdn": {*_SEEN, *_AFTER},
}
OUT_KEYS = {name: ["loss"] for name in TEAMS}
_LOCAL, _MIXER = (
    "local_value_network_params.module.0.module.params.0",
    "mixer_network_params.module",
)
_MIXING = {
    "hyper_w_1": (WIDTH * AGENTS, STATE),
    "hyper_w_final": (WIDTH, STATE),
    "hyper_b_1": (WIDTH, STATE),
    "V.0": (WIDTH, STATE),
    "V.2": (1, WIDTH),
}
_LAYERS = {
    "qmixer": {_LOCAL: (AGENTS, ACTIONS, OBS), **{f"{_MIXER}.{k}": v for k, v in _MIXING.items()}},
    "qmixer_vdn": {_LOCAL: (ACTIONS, OBS)},
}
LAYERS = {
    name: {f"{p}{k}": v for p in ("", "target_") for k, v in layers.items()}
    for name, layers in _LAYERS.items()
}
