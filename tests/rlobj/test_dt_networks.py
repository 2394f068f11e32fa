"""torchrl's Decision Transformer networks against loops; the losses train them."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from rlobj import DTLoss, OnlineDTLoss
from rlobj.modules import (
    DecisionTransformer,
    DTActor,
    DTConfig,
    OnlineDTActor,
    ProbabilisticActor,
    TanhDelta,
    TanhNormal,
)
from rlobj.specs import Bounded
from tests.rlobj import cases
from tests.rlobj.cases import ACT, OBS, STEPS, assert_close

KEYS = ("observation", "action", "return_to_go")
SMALL = DTConfig(n_embd=8, n_layer=2, n_head=2, n_inner=12, n_positions=3 * STEPS)


def still(net: nn.Module) -> nn.Module:
    """Without dropout, and with parameters large enough to see differences."""
    generator = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return net.eval()


def given(data: TensorDict | None = None) -> list[Tensor]:
    data = cases.windows() if data is None else data
    return [data[k] for k in KEYS]


def slow_hidden(net: DecisionTransformer, b: int) -> Tensor:
    """Tokens R_0 s_0 a_0 R_1 ..., normalised, plus their positions, through the blocks."""
    observation, action, to_go = (x[b] for x in given())
    tokens = []
    for t in range(STEPS):
        tokens.append(net.embed_return(to_go[t]))
        tokens.append(net.embed_state(observation[t]))
        tokens.append(net.embed_action(action[t]))
    gpt = net.transformer
    x = torch.stack([net.embed_ln(token) for token in tokens])
    x = torch.stack([token + gpt.positions.weight[i] for i, token in enumerate(x)])[None]
    allowed = torch.ones(3 * STEPS, 3 * STEPS, dtype=torch.bool).tril()[None, None]
    for block in gpt.blocks:
        x = x + block.attend(block.norm1(x), allowed)
        up = block.up(block.norm2(x))
        x = x + block.down(torch.where(up > 0, up, 0.0))
    return gpt.norm_out(x)[0, 1::3]


def test_transformer_by_loop() -> None:
    net = still(DecisionTransformer(OBS, ACT, SMALL))
    hidden = net(*given())
    assert hidden.shape == (3, STEPS, 8)
    for b in range(3):
        assert_close(hidden[b], slow_hidden(net, b).detach())


def test_transformer_takes_any_batch() -> None:
    net = still(DecisionTransformer(OBS, ACT, SMALL))
    hidden = net(*given()).detach()
    assert_close(net(*(x[1] for x in given())), hidden[1])
    stacked = [torch.stack([x, x.flip(0)]) for x in given()]
    assert_close(net(*stacked), torch.stack([hidden, hidden.flip(0)]))


@pytest.mark.parametrize(("what", "first"), [(0, 2), (1, 3), (2, 2)])
def test_transformer_is_causal(what: int, first: int) -> None:
    """An action is seen from the next step on."""
    net, moved = still(DecisionTransformer(OBS, ACT, SMALL)), given()
    moved[what] = moved[what].clone()
    moved[what][:, 2] += 1
    changed = (net(*given()) - net(*moved)).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [t >= first for t in range(STEPS)]


def test_heads_of_the_actors() -> None:
    deterministic = still(DTActor(OBS, ACT, SMALL))
    hidden = deterministic.transformer(*given())
    layer = deterministic.action_layer
    assert_close(deterministic(*given()), (hidden @ layer.weight.T + layer.bias).detach())
    online = still(OnlineDTActor(OBS, ACT, SMALL))
    hidden = online.transformer(*given())
    loc, scale = online(*given())
    mean, spread = online.action_layer_mean, online.action_layer_logstd
    assert_close(loc, (hidden @ mean.weight.T + mean.bias).detach())
    logit = (hidden @ spread.weight.T + spread.bias).tanh()
    assert_close(scale, (-5 + 7 * (logit + 1) / 2).exp().detach())
    spread.bias.data.fill_(99.0)
    assert_close(online(*given())[1], torch.full((3, STEPS, ACT), math.exp(2.0)))


def test_initial_weights() -> None:
    config = DTConfig(n_embd=64, n_layer=8, n_head=2, n_inner=64)
    gpt = DecisionTransformer(OBS, ACT, config).transformer
    for block in gpt.blocks:
        for layer, std in (
            (block.qkv, 0.02), (block.up, 0.02), (block.out, 0.005), (block.down, 0.005),
        ):  # fmt: skip
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
            assert not layer.bias.any()
    assert gpt.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
    actor = OnlineDTActor(OBS, ACT, config)
    for layer in (actor.action_layer_mean, actor.action_layer_logstd):
        assert_close(layer.weight @ layer.weight.T, torch.eye(ACT))
        assert not layer.bias.any()


def test_dropout_where_it_is_asked_for() -> None:
    net = DecisionTransformer(OBS, ACT, DTConfig(**{**vars(SMALL), "resid_pdrop": 0.3}))
    block = net.transformer.blocks[0]
    assert (block.drop.p, block.drop_attention.p, net.transformer.drop.p) == (0.3, 0.1, 0.1)
    torch.manual_seed(0)
    first = net(*given())
    assert not torch.equal(first, net(*given()))
    net.eval()
    assert torch.equal(net(*given()), net(*given()))
    none = DTConfig(**{**vars(SMALL), "resid_pdrop": 0.0, "attn_pdrop": 0.0})
    embedded = DecisionTransformer(OBS, ACT, none)  # the tokens themselves are dropped, too
    assert not torch.equal(embedded(*given()), embedded(*given()))


def test_configurations() -> None:
    assert vars(DecisionTransformer.default_config()) == {
        "n_embd": 256, "n_layer": 4, "n_head": 4, "n_inner": 1024, "activation": "relu",
        "n_positions": 1024, "resid_pdrop": 0.1, "attn_pdrop": 0.1,
    }  # fmt: skip
    for cls in (DTActor, OnlineDTActor):
        wide = cls.default_config()
        assert (wide.n_embd, wide.n_inner, wide.n_layer, wide.n_head) == (512, 2048, 4, 4)
    by_mapping = DTActor(OBS, ACT, transformer_config=vars(SMALL))
    assert by_mapping.transformer.hidden_size == 8
    assert by_mapping.transformer.transformer.blocks[0].up.weight.shape == (12, 8)
    assert isinstance(DecisionTransformer.DTConfig(n_embd=4), DTConfig)
    small = DecisionTransformer(OBS, ACT, {**vars(SMALL), "activation": "gelu_new"})
    x = torch.tensor([0.7])
    inner = math.sqrt(2 / math.pi) * (0.7 + 0.044715 * 0.7**3)
    approximate = 0.5 * 0.7 * (1 + math.tanh(inner))
    assert_close(small.transformer.blocks[0].activation(x), [approximate])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [({"activation": "snake"}, ValueError, "activation 'snake': choose one of"),
     ({"n_head": 3}, ValueError, "3 attention heads do not divide"),
     ({"n_layers": 3}, TypeError, "n_layers")],
)  # fmt: skip
def test_refused_configurations(change: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        DecisionTransformer(OBS, ACT, {**vars(SMALL), **change})
    with pytest.raises(TypeError, match="a DTConfig or a mapping"):
        DecisionTransformer(OBS, ACT, 3)


def test_windows_that_are_too_long() -> None:
    net = DecisionTransformer(OBS, ACT, {**vars(SMALL), "n_positions": 3 * STEPS - 1})
    with pytest.raises(ValueError, match=f"{3 * STEPS} tokens, but the transformer has"):
        net(*given())


def test_losses_train_the_actors() -> None:
    """A few steps on one batch bring both losses down."""
    data, spec = cases.windows(), Bounded(torch.tensor(cases.LOW), torch.tensor(cases.HIGH))
    data["action"] = spec.project(0.3 * data["action"])
    bounds = {"low": spec.low, "high": spec.high}
    names = list(KEYS)
    actors = {
        "loss": ProbabilisticActor(
            TensorDictModule(DTActor(OBS, ACT, SMALL), names, ["param"]), ["param"],
            distribution_class=TanhDelta, distribution_kwargs=bounds, spec=spec,
        ),
        "loss_log_likelihood": ProbabilisticActor(
            TensorDictModule(OnlineDTActor(OBS, ACT, SMALL), names, ["loc", "scale"]),
            ["loc", "scale"], distribution_class=TanhNormal, distribution_kwargs=bounds, spec=spec,
        ),
    }  # fmt: skip
    for term, actor in actors.items():
        loss = DTLoss(actor) if term == "loss" else OnlineDTLoss(actor)
        optimizer, values = torch.optim.Adam(loss.parameters(), lr=1e-2), []
        for _ in range(30):
            value = loss(data)[term]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        first, last = values[0], sum(values[-3:]) / 3
        assert last < first - 0.1 * abs(first)
