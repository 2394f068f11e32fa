"""Value estimators of either library on the same batches, and what their calls leave behind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests.parity.harness import Library, leaves, libraries, seeded

KINDS = ("td0", "td1", "tdlambda", "gae", "magae", "vtrace")
TIMED, LAMBDA = KINDS[1:], ("tdlambda", "gae", "magae")
CALL_TIMED = ("gae", "magae", "vtrace")  # torchrl's forward takes time_dim there
CLASSES = dict(
    zip(
        KINDS,
        ("TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "GAE", "MultiAgentGAE", "VTrace"),
        strict=True,
    )
)
AGENTS, OBS = 3, 4


class PerAgent(nn.Module):
    """One value per agent."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBS, AGENTS)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.linear(observation).tanh().unsqueeze(-1)


def network(lib: Library, kind: str, out_key: Any = "state_value") -> Any:
    module = PerAgent() if kind == "magae" else nn.Sequential(nn.Linear(OBS, 1), nn.Tanh())
    return seeded(
        lambda: lib.modules.ValueOperator(module, in_keys=["observation"], out_keys=[out_key])
    )


def actor(lib: Library) -> Any:
    net = nn.Sequential(nn.Linear(OBS, 4), lib.modules.NormalParamExtractor())
    module = TensorDictModule(net, ["observation"], ["loc", "scale"])
    return lib.modules.ProbabilisticActor(
        module,
        in_keys=["loc", "scale"],
        distribution_class=lib.modules.TanhNormal,
        return_log_prob=True,
    )


@dataclass(frozen=True)
class Case:
    """Options of an estimator, and a batch for it."""

    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (3, 5)
    time: int = -1  # axis of time in the batch
    names: tuple[str | None, ...] | None = None
    change: Callable[[TensorDict], Any] = lambda data: None
    keys: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()  # given to the call: params, target_params
    kinds: tuple[str, ...] = KINDS
    own_modules: bool = True
    unlike: tuple[str, ...] = ()  # what differs on purpose: rewards, values, estimate

    def estimator(self, lib: Library, kind: str) -> Any:
        average = dict.fromkeys(KINDS[:3], "average_rewards") | {"vtrace": "average_adv"}
        options = {"gamma": 0.9, **self.options}
        options |= {"lmbda": 0.8} if kind in LAMBDA and "lmbda" not in options else {}
        if options.pop("average", False):
            options[average.get(kind, "average_gae")] = True
        if "value_network" not in options:
            options["value_network"] = network(lib, kind, self.keys.get("value", "state_value"))
        if kind == "vtrace":
            options["actor_network"] = seeded(actor, lib, seed=5)
        made = getattr(lib.value, CLASSES[kind])(**options)
        if self.keys:
            made.set_keys(**self.keys)
        return made

    def batch(self) -> TensorDict:
        """Consecutive steps: s' is s of the next one unless the step is done."""
        shape = list(self.shape)
        length = shape.pop(self.time)
        generator = torch.Generator().manual_seed(0)
        now, after = torch.randn(2, *shape, length, OBS, generator=generator)
        ends = torch.rand(*shape, length, 1, generator=generator)
        done, terminated = ends < 0.4, ends < 0.2
        terminated[..., -1, :] = False
        follows = torch.cat([now[..., 1:, :], after[..., -1:, :]], -2)
        after = torch.where(done, after, follows)
        mode = seeded(actor, libraries()[1], seed=5)(TensorDict({"observation": now}))["action"]
        drawn = torch.randn(*shape, length, 2, generator=generator)
        result = {"observation": after, "reward": drawn[..., :1], "done": done}
        result |= {"terminated": terminated, "truncated": done & ~terminated}
        log_mu = drawn[..., 1] - 0.5
        data = {"observation": now, "action": mode.detach(), "action_log_prob": log_mu}
        flat = TensorDict({**data, "next": result}, [*shape, length])
        last = len(shape)
        order = list(range(last))
        order.insert(self.time % (last + 1), last)
        made = flat.permute(*order).clone() if order != sorted(order) else flat
        self.change(made)
        if self.names is not None:
            made.names = self.names
        return made


def standing(key: Any = "state_value", agents: bool = False) -> Callable[[TensorDict], Any]:
    """Values that the batch holds already."""

    def change(data: TensorDict) -> None:
        generator = torch.Generator().manual_seed(4)
        shape = (*data.shape, AGENTS, 1) if agents else (*data.shape, 1)
        data[key], data["next", key] = torch.randn(2, *shape, generator=generator)

    return change


def no_observation_at_ends(data: TensorDict) -> None:
    data["next", "observation"][data["next", "done"].squeeze(-1)] = torch.nan


def never_terminated(data: TensorDict) -> None:
    data["next", "terminated"].zero_()


def renamed(data: TensorDict) -> None:
    after = data["next"]
    after["pay"], after["end", "any"] = after.pop("reward"), after.pop("done")
    after["end", "real"] = after.pop("terminated")
    data["mu"] = data.pop("action_log_prob")


def per_agent(data: TensorDict) -> None:
    after = data["next"]
    pay = after["reward"].unsqueeze(-2) * torch.tensor([[1.0], [2.0], [-1.0]])
    after["reward"] = pay
    for key in ("done", "terminated"):
        after[key] = after[key].unsqueeze(-2).expand(pay.shape).clone()


def entry(key: Any, value: Callable[[TensorDict], Any]) -> Callable[[TensorDict], Any]:
    return lambda data: data.set(key, value(data))


def steps(data: TensorDict) -> torch.Tensor:
    return torch.arange(data.numel()).reshape(*data.shape, 1) % 3 + 1


def groups(data: TensorDict) -> torch.Tensor:
    return torch.arange(data.numel()).reshape(data.shape) % 4 // 2 * 7 - 3


def without(key: Any) -> Callable[[TensorDict], Any]:
    return lambda data: data.pop(key) if isinstance(key, str) else data["next"].pop(key[1])


def agents_too(case: Case, kind: str, data: TensorDict) -> TensorDict:
    """Values that stand, one for each agent."""
    key = case.keys.get("value", "state_value")
    if kind == "magae" and data.get(key, None) is not None:
        standing(key, agents=True)(data)
    return data


def given(case: Case, lib: Library, kind: str) -> dict[str, TensorDict]:
    """Parameters for a call, different from the network's own and from each other."""
    made = {}
    for i, name in enumerate(case.parameters):
        params = TensorDict.from_module(network(lib, kind)).data.apply(lambda p, i=i: p * (1.5 + i))
        made[name] = params.apply(lambda p: p.requires_grad_())
    return made


def run(case: Case, lib: Library, kind: str) -> tuple[Any, dict, dict, Any]:
    """The estimator, what its forward leaves in the batch, gradients, and value_estimate."""
    estimator = seeded(case.estimator, lib, kind)
    data = agents_too(case, kind, case.batch())
    kept, params = data.clone(), given(case, lib, kind)
    inputs = [k for k, v in data.items(True, True) if v.is_floating_point()]
    if estimator.differentiable:
        data.apply_(lambda x: x.requires_grad_() if x.is_floating_point() else x)
    before = {k: data[k] for k in inputs}
    out = seeded(lambda: estimator(data, **params, **case.call))
    assert out is data
    written = leaves(data)
    keys = estimator.tensor_keys
    found = [data[keys.advantage], data[keys.value_target]]
    grads = slopes(found, before, params) if estimator.differentiable else {}
    target = None
    if kind != "vtrace" and "estimate" not in case.unlike:  # torchrl's V-trace has none
        timed = case.call if kind in CALL_TIMED else {}
        after = {k: v for k, v in params.items() if k == "target_params"}
        own = params if kind in ("gae", "magae") else after
        target = estimator.value_estimate(kept, **own, **timed).detach()
    return estimator, written, grads, target


def slopes(found: list[Tensor], inputs: dict, params: dict[str, TensorDict]) -> dict:
    """Gradients of a weighting of what is found with respect to inputs and given parameters."""
    weighted = sum((x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum() for x in found)
    given = {f"{n} {k}": v for n, p in params.items() for k, v in p.items(True, True)}
    named = {**inputs, **given}
    grads = torch.autograd.grad(weighted, list(named.values()), allow_unused=True)
    both = zip(named.items(), grads, strict=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in both}


def comparable(case: Case, written: dict) -> dict:
    """Without what differs on purpose, and with zeros for the values of steps that have none."""
    values = {k: v for k, v in written.items() if "state_value" in k}
    rewards = {("next", "reward")} if "rewards" in case.unlike else set()
    valid = written.get("shifted_valid")
    if valid is not None:
        whole = {k: valid.reshape(*valid.shape, *[1] * (v.ndim - 2)) for k, v in values.items()}
        written = written | {k: v.where(whole[k], 0.0) for k, v in values.items()}
    missing = {*values, ("next", "observation")} if "values" in case.unlike else set()
    return {k: v for k, v in written.items() if k not in rewards | missing}
