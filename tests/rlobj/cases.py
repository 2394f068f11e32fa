"""Small losses, batches and slow, obvious arithmetic that the tests of rlobj share.

Nothing below ``# arithmetic`` calls rlobj: plain Python numbers, one loop per sum.
"""

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rlobj import (
    AWACLoss,
    BCLoss,
    CalQLLoss,
    CQLLoss,
    DDPGLoss,
    DiscreteSACLoss,
    DTLoss,
    EDACLoss,
    IQLLoss,
    LossModule,
    OnlineDTLoss,
    ReBRACLoss,
    REDQLoss,
    SACLoss,
    TD3BCLoss,
    TD3Loss,
    XQLLoss,
    noise,
)
from rlobj.modules import (
    Actor,
    IndependentNormal,
    OneHotCategorical,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
)
from rlobj.specs import Bounded
from tests.rlobj import discrete, dreams, on_policy, teams

OBS, ACT, N, STEPS = 3, 2, 5, 4
ACTIONS = 3
LOW, HIGH = (-1.0, -2.0), (1.0, 0.5)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBS + ACT, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.linear(torch.cat([observation, action], -1))


class MeanAndScale(nn.Module):
    """The halves of the input as mean and log standard deviation."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = x.chunk(2, -1)
        return mean, log_scale.exp()


class Window(nn.Module):
    """A sequence model without sequence: each step's tokens side by side."""

    def __init__(self, outputs: int = ACT) -> None:
        super().__init__()
        self.lin = nn.Linear(OBS + ACT + 1, outputs)

    def forward(self, observation: Tensor, action: Tensor, return_to_go: Tensor) -> Tensor:
        return self.lin(torch.cat([observation, action, return_to_go], -1))


class GaussianWindow(Window):
    def __init__(self) -> None:
        super().__init__(2 * ACT)
        self.halves = MeanAndScale()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.halves(super().forward(*inputs))


def spec() -> Bounded:
    return Bounded(torch.tensor(LOW), torch.tensor(HIGH))


def stochastic(gaussian: bool = False, action: str = "action") -> ProbabilisticActor:
    """A TanhNormal actor within the bounds, or an unbounded Gaussian one."""
    body = nn.Sequential(nn.Linear(OBS, 2 * ACT), MeanAndScale())
    bounds = {"low": torch.tensor(LOW), "high": torch.tensor(HIGH)}
    return ProbabilisticActor(
        TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[action],
        distribution_class=IndependentNormal if gaussian else TanhNormal,
        distribution_kwargs=None if gaussian else bounds,
        spec=spec(),
    )


def deterministic(action: str = "action") -> Actor:
    return Actor(nn.Linear(OBS, ACT), out_keys=[action], spec=spec())


def critic(action: str = "action", out: str = "state_action_value") -> ValueOperator:
    return ValueOperator(Critic(), in_keys=["observation", action], out_keys=[out])


def value(out: str = "state_value") -> ValueOperator:
    return ValueOperator(nn.Linear(OBS, 1), out_keys=[out])


def categorical() -> ProbabilisticActor:
    """A policy over ACTIONS actions, taken as one-hot vectors."""
    return ProbabilisticActor(
        TensorDictModule(nn.Linear(OBS, ACTIONS), in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
    )


def action_values() -> ValueOperator:
    return ValueOperator(nn.Linear(OBS, ACTIONS), out_keys=["action_value"])


def window() -> Actor:
    return Actor(Window(), in_keys=["observation", "action", "return_to_go"])


def stochastic_window() -> ProbabilisticActor:
    keys = ["observation", "action", "return_to_go"]
    return ProbabilisticActor(
        TensorDictModule(GaussianWindow(), in_keys=keys, out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": torch.tensor(LOW), "high": torch.tensor(HIGH)},
        spec=spec(),
    )


CASES: dict[str, Callable[..., LossModule]] = {
    "bc": lambda **kw: BCLoss(stochastic(), **kw),
    "bc_l2": lambda **kw: BCLoss(deterministic(), **kw),
    "td3_bc": lambda **kw: TD3BCLoss(deterministic(), critic(), **{"action_spec": spec(), **kw}),
    "iql": lambda **kw: IQLLoss(stochastic(), critic(), value(), expectile=0.8, **kw),
    "sac": lambda **kw: SACLoss(stochastic(), critic(), **kw),
    "sac_delayed": lambda **kw: SACLoss(stochastic(), critic(), delay_actor=True, **kw),
    # one critic: several share a batch by position, which masks and odd sizes would upset
    "sac_v1": lambda **kw: SACLoss(stochastic(), critic(), value(), **{"num_qvalue_nets": 1, **kw}),
    "discrete_sac": lambda **kw: DiscreteSACLoss(
        categorical(), action_values(), **{"num_actions": ACTIONS, "action_space": "one_hot", **kw}
    ),
    "redq": lambda **kw: REDQLoss(stochastic(), critic(), **{"num_qvalue_nets": 3, **kw}),
    "edac": lambda **kw: EDACLoss(stochastic(), critic(), **{"num_qvalue_nets": 3, **kw}),
    "awac": lambda **kw: AWACLoss(stochastic(), critic(), **kw),
    "ddpg": lambda **kw: DDPGLoss(deterministic(), critic(), **kw),
    "td3": lambda **kw: TD3Loss(deterministic(), critic(), **{"action_spec": spec(), **kw}),
    "rebrac": lambda **kw: ReBRACLoss(deterministic(), critic(), **{"action_spec": spec(), **kw}),
    "cql": lambda **kw: CQLLoss(stochastic(), critic(), num_random=3, **kw),
    "cql_lagrange": lambda **kw: CQLLoss(
        stochastic(), critic(), num_random=3, with_lagrange=True, max_q_backup=True, **kw
    ),
    "cal_ql": lambda **kw: CalQLLoss(stochastic(), critic(), num_random=3, **kw),
    "cal_ql_lagrange": lambda **kw: CalQLLoss(
        stochastic(), critic(), num_random=3, with_lagrange=True, deterministic_backup=False, **kw
    ),
    "xql": lambda **kw: XQLLoss(stochastic(), critic(), value(), **kw),
    "xql_random": lambda **kw: XQLLoss(stochastic(), critic(), value(), num_random=2, **kw),
    "dt": lambda **kw: DTLoss(window(), **kw),
    "online_dt": lambda **kw: OnlineDTLoss(stochastic_window(), samples_mc_entropy=2, **kw),
    **discrete.DISCRETE,
    **teams.TEAMS,
    **on_policy.ON_POLICY,
    **dreams.DREAMS,
}
# whose reduction can be chosen; Dreamer's is a mean, as upstream
REDUCIBLE = tuple(name for name in CASES if name not in dreams.DREAMS)
ENSEMBLES = (
    *("td3_bc", "iql", "sac", "sac_delayed", "sac_v1", "cql", "cql_lagrange"),
    *("discrete_sac", "redq", "edac", "awac", "td3", "rebrac"),
    *("cal_ql", "cal_ql_lagrange", "xql", "xql_random"),
)
BOOTSTRAPPING = (*ENSEMBLES, "ddpg")


def perturb(loss: LossModule, seed: int = 1) -> LossModule:
    """Random parameters, different in the targets, and no warning about targets."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in loss.tensors().items():
        fixed = name.endswith(".support")
        trained = "network_params" in name or name.startswith((*dreams.NETWORKS, "log_alpha"))
        if trained and not fixed:
            tensor.data.copy_(0.6 * torch.randn(tensor.shape, generator=generator))
    loss.mark_updated()
    return loss


def build(name: str, **kwargs: object) -> LossModule:
    return perturb(CASES[name](**kwargs))


def batch(seed: int = 0, n: int = N) -> TensorDict:
    """Transitions; the second is terminated, the third truncated (done, value still counts)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    flags = torch.zeros(2, n, 1, dtype=torch.bool)
    flags[:, 1:2], flags[0, 2:3] = True, True
    return TensorDict(
        {
            "observation": draw(n, OBS),
            "action": low + (high - low) * draw(n, ACT).sigmoid(),
            ("next", "observation"): draw(n, OBS),
            ("next", "reward"): 2 * draw(n, 1),
            ("next", "done"): flags[0],
            ("next", "terminated"): flags[1],
        },
        [n],
    )


def windows(seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"observation": OBS, "action": ACT, "return_to_go": 1}
    data = {k: torch.randn(3, STEPS, s, generator=generator) for k, s in sizes.items()}
    return TensorDict(data, [3, STEPS])


def batch_for(name: str, seed: int = 0) -> TensorDict:
    if name in discrete.DISCRETE:
        return discrete.batch(discrete.SPACE_OF.get(name, "one_hot"), seed)
    for there in (on_policy, teams, dreams):
        if name in there.OUT_KEYS:
            return there.batch(name, seed)
    if name in ("dt", "online_dt"):
        return windows(seed)
    data, generator = batch(seed), torch.Generator().manual_seed(seed + 100)
    if name == "discrete_sac":
        chosen = torch.randint(ACTIONS, (N,), generator=generator)
        data["action"] = nn.functional.one_hot(chosen, ACTIONS)
    if name.startswith("cal_ql"):
        data["mc_return"] = torch.randn(N, 1, generator=generator)
    if name == "rebrac":
        low, high = torch.tensor(LOW), torch.tensor(HIGH)
        u = torch.rand(N, ACT, generator=generator)
        data["next", "action"] = low + (high - low) * u
    return data


def tape_for(loss: LossModule, data: TensorDict, seed: int = 0) -> list[Tensor]:
    """Noise for one forward."""
    recorder = noise.Recorder()
    with torch.no_grad(), noise.using(recorder):
        loss(data.clone())
    generator = torch.Generator().manual_seed(seed)
    return [d.sample(generator, "cpu", 1)[0] for d in recorder.draws]


def taped(tape: Sequence[Tensor], method: Callable, *args: object) -> object:
    with noise.using(noise.Tape(tape)):
        return method(*args)


# gradients


def leaves(loss: LossModule) -> dict[str, Tensor]:
    """Every floating tensor of a loss, targets and buffers too, as a leaf that wants gradient."""
    return {k: v.detach().clone().requires_grad_() for k, v in loss.tensors().items()}


def central_difference(f: Callable[[Tensor], float], at: Tensor, eps: float = 1e-6) -> Tensor:
    at, grad = at.detach().clone(), torch.zeros_like(at)
    for i in range(at.numel()):
        ends = []
        for step in (eps, -eps):
            moved = at.clone()
            moved.view(-1)[i] += step
            ends.append(f(moved))
        grad.view(-1)[i] = (ends[0] - ends[1]) / (2 * eps)
    return grad


def check_gradient(loss: LossModule, term: Callable[[], Tensor], *trained: str) -> None:
    """The term's gradient reaches exactly the tensors below ``trained``, and is the slope there.

    ``term`` is called with other parameters bound; its noise must be fixed.
    """
    at = leaves(loss)

    def compute(**replaced: Tensor) -> Tensor:
        with loss.bind({**at, **{k.replace("__", "."): v for k, v in replaced.items()}}):
            return term().sum()

    grads = torch.autograd.grad(compute(), list(at.values()), allow_unused=True)
    found = {k: g for k, g in zip(at, grads, strict=True) if g is not None and g.abs().max() > 0}
    expected = {k for k in at if k.split(".")[0] in trained}
    assert set(found) == expected
    for name, grad in found.items():
        key = name.replace(".", "__")
        slope = central_difference(lambda x, key=key: compute(**{key: x}).item(), at[name])
        torch.testing.assert_close(grad, slope, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: n + m)


# arithmetic


def numbers(loss: LossModule, name: str) -> list[tuple[list, list]]:
    """(weight, bias) of a linear network as lists, one pair per member of an ensemble."""
    found = {k.rpartition(".")[2]: v for k, v in loss.tensors().items() if k.startswith(name + ".")}
    weight, bias = found["weight"], found["bias"]
    many = weight.ndim == 3
    pairs = zip(weight, bias, strict=True) if many else [(weight, bias)]
    return [(w.tolist(), b.tolist()) for w, b in pairs]


def linear(net: tuple[list, list], *inputs: list[float]) -> list[float]:
    x = [v for part in inputs for v in part]
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(*net, strict=True)
    ]


def gaussian(net: tuple[list, list], observation: list[float]) -> tuple[list[float], list[float]]:
    out = linear(net, observation)
    half = len(out) // 2
    return out[:half], [math.exp(v) for v in out[half:]]


def normal_log_density(x: Sequence[float], mean: Sequence[float], scale: Sequence[float]) -> float:
    terms = zip(x, mean, scale, strict=True)
    return sum(
        -((v - m) ** 2) / (2 * s * s) - math.log(s * math.sqrt(2 * math.pi)) for v, m, s in terms
    )


def squash(before: Sequence[float]) -> list[float]:
    """tanh into the box, kept 1e-6 of its half-width off the faces (``safe_tanh``)."""
    inside = [min(max(math.tanh(x), 1e-6 - 1), 1 - 1e-6) for x in before]
    return [w + (y + 1) / 2 * (h - w) for y, w, h in zip(inside, LOW, HIGH, strict=True)]


def squashed_log_density(
    before: Sequence[float], mean: Sequence[float], scale: Sequence[float]
) -> float:
    """log pi of ``squash(before)``: the Gaussian's density over the slope of the squashing."""
    slopes = [(h - w) / 2 / math.cosh(x) ** 2 for x, w, h in zip(before, LOW, HIGH, strict=True)]
    return normal_log_density(before, mean, scale) - sum(math.log(s) for s in slopes)


def unsquash(action: Sequence[float]) -> list[float]:
    box = zip(action, LOW, HIGH, strict=True)
    return [math.atanh(2 * (a - low) / (high - low) - 1) for a, low, high in box]


def draw_action(
    net: tuple[list, list], observation: list[float], eps: list[float]
) -> tuple[list[float], float]:
    """A sample of the squashed Gaussian from given noise, and its log-density."""
    mean, scale = gaussian(net, observation)
    before = [m + s * e for m, s, e in zip(mean, scale, eps, strict=True)]
    return squash(before), squashed_log_density(before, mean, scale)


def distance(kind: str, a: float, b: float) -> float:
    gap = abs(a - b)
    if kind == "l1":
        return gap
    if kind == "l2":
        return gap * gap
    return 0.5 * gap * gap if gap < 1 else gap - 0.5


def rows(data: TensorDict) -> list[dict]:
    """The batch as one dict of plain numbers per transition."""
    after = data["next"]
    return [
        {
            "s": data["observation"][i].tolist(),
            "a": data["action"][i].tolist(),
            "s2": after["observation"][i].tolist(),
            "r": after["reward"][i].item(),
            "end": after["terminated"][i].item(),
        }
        for i in range(len(data))
    ]


def assert_close(actual: Tensor, expected: object) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), wanted, rtol=1e-9, atol=1e-10)
