"""Losses, batches and slow arithmetic over discrete actions; the counterpart of ``cases``."""

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rlobj import DiscreteCQLLoss, DiscreteIQLLoss, DistributionalDQNLoss, DQNLoss, LossModule
from rlobj.modules import (
    DistributionalQValueActor,
    OneHotCategorical,
    ProbabilisticActor,
    QValueActor,
    ValueOperator,
)
from rlobj.specs import Binary, Categorical, MultiOneHot, OneHot, TensorSpec

OBS, ACTIONS, WIDTHS, N = 3, 5, (2, 3), 8
ATOMS, LOW, HIGH = 7, -3.0, 3.0
SPECS: dict[str, Callable[[], TensorSpec]] = {
    "one_hot": lambda: OneHot(ACTIONS),
    "categorical": lambda: Categorical(ACTIONS),
    "mult_one_hot": lambda: MultiOneHot(WIDTHS),
    "binary": lambda: Binary(ACTIONS),
}
JOINT = {
    "one_hot": [[i] for i in range(ACTIONS)],
    "mult_one_hot": [[i, WIDTHS[0] + j] for i in range(WIDTHS[0]) for j in range(WIDTHS[1])],
    "binary": [[i for i in range(ACTIONS) if code >> i & 1] for code in range(2**ACTIONS)],
}
JOINT["categorical"] = JOINT["one_hot"]


class Atoms(nn.Module):
    """Logits ``[*batch, atoms, actions]``."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(OBS, ATOMS * ACTIONS)

    def forward(self, observation: Tensor) -> Tensor:
        return self.lin(observation).unflatten(-1, (ATOMS, ACTIONS))


def q_actor(space: str = "one_hot", **keys: str) -> QValueActor:
    return QValueActor(nn.Linear(OBS, ACTIONS), spec=SPECS[space](), **keys)


def c51_actor(space: str = "one_hot", **kwargs: object) -> DistributionalQValueActor:
    support = torch.linspace(LOW, HIGH, ATOMS)
    return DistributionalQValueActor(Atoms(), support=support, spec=SPECS[space](), **kwargs)


class IndexCategorical(torch.distributions.Categorical):
    """torch's, without its checks of values, which cannot be traced."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)


def policy(space: str = "one_hot") -> ProbabilisticActor:
    return ProbabilisticActor(
        TensorDictModule(nn.Linear(OBS, ACTIONS), in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical if space == "one_hot" else IndexCategorical,
        spec=SPECS[space](),
    )


def critic() -> TensorDictModule:
    return ValueOperator(nn.Linear(OBS, ACTIONS), out_keys=["state_action_value"])


def discrete_iql(space: str = "one_hot", **kwargs: object) -> LossModule:
    value = ValueOperator(nn.Linear(OBS, 1))
    return DiscreteIQLLoss(policy(space), critic(), value, **{"expectile": 0.8, **kwargs})


DISCRETE: dict[str, Callable[..., LossModule]] = {
    "dqn": lambda **kw: DQNLoss(q_actor(), **kw),
    "dqn_double": lambda **kw: DQNLoss(q_actor("categorical"), double_dqn=True, **kw),
    "c51": lambda **kw: DistributionalDQNLoss(c51_actor(), gamma=0.9, **kw),
    "c51_index": lambda **kw: DistributionalDQNLoss(c51_actor("categorical"), gamma=0.9, **kw),
    "discrete_cql": lambda **kw: DiscreteCQLLoss(q_actor("mult_one_hot"), **kw),
    "discrete_iql": lambda **kw: discrete_iql(**kw),
}
SPACE_OF = {"dqn_double": "categorical", "c51_index": "categorical", "discrete_cql": "mult_one_hot"}


def batch(space: str = "one_hot", seed: int = 0, n: int = N) -> TensorDict:
    """Transitions; the second is terminated, the third truncated (done, value still counts)."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.zeros(2, n, 1, dtype=torch.bool)
    flags[:, 1:2], flags[0, 2:3] = True, True
    seen, after, reward, score = (
        torch.randn(n, width, generator=generator) for width in (OBS, OBS, 1, ACTIONS)
    )
    choices = {
        "one_hot": lambda: SPECS["one_hot"]().project(score),
        "mult_one_hot": lambda: SPECS["mult_one_hot"]().project(score),
        "categorical": lambda: score.argmax(-1),
        "binary": lambda: SPECS["binary"]().project(score),
    }
    return TensorDict(
        {
            "observation": seen,
            "action": choices[space](),
            ("next", "observation"): after,
            ("next", "reward"): 2 * reward,
            ("next", "done"): flags[0],
            ("next", "terminated"): flags[1],
        },
        [n],
    )


def picked(space: str, action: Tensor) -> list[int]:
    """The entries of the action values that an action adds up."""
    if space == "categorical":
        return [int(action)]
    return [i for i, on in enumerate(action.tolist()) if on]


def rows(data: TensorDict, space: str) -> list[dict]:
    after = data["next"]
    return [
        {
            "s": data["observation"][i].tolist(),
            "a": picked(space, data["action"][i]),
            "s2": after["observation"][i].tolist(),
            "r": after["reward"][i].item(),
            "end": after["terminated"][i].item(),
        }
        for i in range(len(data))
    ]


def best(values: Sequence[float], space: str) -> list[int]:
    """The joint action of largest value, found by trying all."""
    return max(JOINT[space], key=lambda action: sum(values[i] for i in action))


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


# what test_common expects

OUT_KEYS = {
    **{name: ["loss"] for name in ("dqn", "dqn_double", "c51", "c51_index")},
    "discrete_cql": ["loss_qvalue", "loss_cql"],
    "discrete_iql": ["loss_actor", "loss_qvalue", "loss_value", "entropy"],
}
_Q = {f"{p}value_network_params.module.0.module": (ACTIONS, OBS) for p in ("", "target_")}
_C51 = {f"{k}.lin": (ATOMS * ACTIONS, OBS) for k in _Q}
LAYERS = {
    **dict.fromkeys(("dqn", "dqn_double", "discrete_cql"), _Q),
    **dict.fromkeys(("c51", "c51_index"), _C51),
    "discrete_iql": {
        "actor_network_params.module.0.module": (ACTIONS, OBS),
        "value_network_params.module": (1, OBS),
        **{f"{p}qvalue_network_params.module": (2, ACTIONS, OBS) for p in ("", "target_")},
    },
}
_SUPPORTS = ("value_network_params.support", "value_network_params.module.2.support")
_BUFFERS = {f"{p}{k}": (ATOMS,) for k in _SUPPORTS for p in ("", "target_")}
OTHERS = {name: {"gamma": (), **_BUFFERS} for name in ("c51", "c51_index")}
WEIGHS = ("dqn", "dqn_double", "c51", "c51_index")
