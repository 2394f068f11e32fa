"""Dreamer's networks and its environment against torchrl's."""

import pytest

pytest.importorskip("torchrl", reason="run by `make parity` in an environment with torchrl")

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.model_based.dreamer import DreamerEnv
from torchrl.envs.utils import step_mdp

import rlobj.envs
from tests.parity.harness import assert_same, leaves, libraries, seeded, tensors_of
from tests.parity.test_dreamer import (
    ACT,
    BELIEF,
    EMBEDDED,
    SIDE,
    STATE,
    box,
    imagined_world,
    policy,
    posterior,
    prior,
    rollout,
    starts,
    windows,
)
from tests.parity.test_signatures import assert_fits

pytestmark = pytest.mark.parity


def drawn(*shapes):
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(shape, generator=generator) for shape in shapes]


IMAGE, LATENT = (3, SIDE, SIDE), ((2, STATE), (2, BELIEF))
STEP = ((2, STATE), (2, BELIEF), (2, ACT))
NETWORKS = {
    "actor": (lambda lib: lib.modules.DreamerActor(ACT), LATENT),
    "small actor": (
        lambda lib: lib.modules.DreamerActor(
            ACT, depth=2, num_cells=7, activation_class=nn.Tanh, std_bias=2.0, std_min_val=0.5
        ),
        LATENT,
    ),
    "encoder": (lambda lib: lib.modules.ObsEncoder(), ((2, 3, 64, 64),)),
    "small encoder": (lambda lib: lib.modules.ObsEncoder(4, 2, in_channels=3), ((2, *IMAGE),)),
    "encoder of windows": (lambda lib: lib.modules.ObsEncoder(2, 1), ((2, 3, *IMAGE),)),
    "encoder of one image": (lambda lib: lib.modules.ObsEncoder(2, 2), (IMAGE,)),
    "encoder, old name": (lambda lib: lib.modules.ObsEncoder(32, 2, depth=3), ((2, *IMAGE),)),
    "decoder": (lambda lib: lib.modules.ObsDecoder(), LATENT),
    "small decoder": (
        lambda lib: lib.modules.ObsDecoder(2, 2, latent_dim=STATE + BELIEF, out_channels=1), LATENT
    ),
    "decoder, kernels": (lambda lib: lib.modules.ObsDecoder(2, 3, [3, 4, 5]), LATENT),
    "decoder, one kernel": (lambda lib: lib.modules.ObsDecoder(2, 3, 4), LATENT),
    "decoder of windows": (
        lambda lib: lib.modules.ObsDecoder(2, 2), ((2, 3, STATE), (2, 3, BELIEF))
    ),
    "decoder of one state": (lambda lib: lib.modules.ObsDecoder(2, 2), ((STATE,), (BELIEF,))),
    "decoder, old name": (lambda lib: lib.modules.ObsDecoder(depth=3, num_layers=2), LATENT),
    "prior": (lambda lib: lib.modules.RSSMPrior(box(lib)), ((2, 30), (2, 200), (2, ACT))),
    "small prior": (prior, STEP),
    "prior, smallest scale": (lambda lib: prior(lib, scale_lb=2.0, action_dim=None), STEP),
    "prior with noise": (prior, (*STEP, (2, STATE))),
    "prior without batch": (prior, ((STATE,), (BELIEF,), (ACT,))),
    "posterior": (lambda lib: lib.modules.RSSMPosterior(), ((2, BELIEF), (2, 6))),
    "small posterior": (
        lambda lib: posterior(lib, scale_lb=1.0, rnn_hidden_dim=BELIEF, obs_embed_dim=6),
        ((2, BELIEF), (2, 6)),
    ),
    "posterior with noise": (posterior, ((3, 2, BELIEF), (3, 2, 6), (3, 2, STATE))),
}  # fmt: skip


NAMES = (
    *("DreamerActor", "ObsEncoder", "ObsDecoder", "RSSMPrior", "RSSMPosterior", "RSSMRollout"),
    "WorldModelWrapper",
)


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    theirs, ours = (getattr(lib.modules, name) for lib in libraries())
    assert_fits(name, theirs, ours)
    assert_fits(name, theirs.forward, ours.forward)
    public = {k for k in vars(theirs) if not k.startswith("_")}
    assert {k for k in public if not hasattr(ours, k)} == set()


def test_parameters_of_the_environment():
    assert_fits("DreamerEnv", DreamerEnv, rlobj.envs.DreamerEnv)
    assert_fits("step_mdp", step_mdp, rlobj.envs.step_mdp)


def outputs_of(net, *inputs):
    out = net(*inputs)
    return dict(enumerate(out if isinstance(out, tuple) else (out,)))


@pytest.mark.filterwarnings("ignore:.*depth")
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    """Weights, outputs and gradients from one seed."""
    build, shapes = NETWORKS[name]
    inputs, found = drawn(*shapes), []
    for lib in reversed(libraries()):
        net = seeded(build, lib)
        out = seeded(outputs_of, net, *inputs)
        total = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in out.values())
        grads = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
        named = {
            k: g for (k, _), g in zip(net.named_parameters(), grads, strict=True) if g is not None
        }
        found.append((tensors_of(net), out, named))
    for what, ours, theirs in zip(("weights", "outputs", "gradients"), *found, strict=True):
        assert_same(ours, theirs, what)


@pytest.mark.parametrize(
    "options", [{}, {"use_scan": True}, {"compile_step": True, "compile_backend": "eager"}]
)
def test_rollout(options):
    """Also what it reads and writes; torchrl's loop stands for its scan, which needs a compiler."""
    found, data = [], windows(2, 4)().exclude("next")
    data["next", "encoded_latents"] = torch.randn(2, 4, EMBEDDED)
    for lib in reversed(libraries()):
        net = seeded(lambda lib=lib: rollout(lib, **(options if lib.name == "rlobj" else {})))
        found.append((leaves(seeded(net, data.clone())), [net.in_keys, net.out_keys]))
    (ours, our_keys), (theirs, their_keys) = found
    assert our_keys == their_keys
    assert_same(ours, theirs, "windows")


def test_environment():
    """Trajectories of a policy from one seed, with either way of starting."""
    found = []
    for lib in reversed(libraries()):
        env, actor = seeded(imagined_world, lib), seeded(policy, lib)
        run = env.rollout
        given = {"tensordict": env.reset(starts(4)())}
        data = seeded(lambda run=run, actor=actor, g=given: run(5, actor, auto_reset=False, **g))
        assert data.names[-1] == "time"
        again = seeded(lambda run=run, actor=actor: run(5, actor, tensordict=starts(4)()))
        found.append((leaves(data), leaves(again), leaves(given["tensordict"])))
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs, "trajectories")


STEP_OPTIONS = [
    {}, {"keep_other": False}, {"exclude_reward": False}, {"exclude_done": True},
    {"exclude_action": False}, {"keep_other": False, "exclude_action": False},
    {"reward_keys": ["reward", ("agent", "pay")], "done_keys": "terminated", "exclude_done": True},
    {"action_keys": [("agent", "move")]},
    {"next_tensordict": TensorDict({"old": torch.ones(2)}, [2])},
]  # fmt: skip


@pytest.mark.parametrize("options", STEP_OPTIONS, ids=str)
def test_step(options):
    names = ["state", "extra", "done", "terminated", "action", ("agent", "move"), ("agent", "eye")]
    after = ["state", "done", "terminated", "reward", ("agent", "pay"), ("agent", "eye")]
    data = TensorDict({}, [2])
    for i, key in enumerate(
        [*names, *(("next", *(k if isinstance(k, tuple) else (k,))) for k in after)]
    ):
        data[key] = torch.full((2, 1), float(i))
    before, found = data.clone(), []
    for step in (rlobj.envs.step_mdp, step_mdp):
        given = {k: v.clone() if k == "next_tensordict" else v for k, v in options.items()}
        out = step(data, **given)
        assert "next_tensordict" not in given or out is given["next_tensordict"]
        found.append(leaves(out))
    assert_same(*found, "next step")
    assert (data == before).all()


def test_sizes_that_torchrl_mixes_up():
    """The first layer after the recurrence has the width of a hidden layer instead of a belief's;
    a decoder of one layer has a width that no layer before it writes."""
    for lib in libraries():
        net = prior(lib, hidden_dim=6)
        decoder = lib.modules.ObsDecoder(2, 1)
        if lib.name == "torchrl":
            for f, shapes in ((net, STEP), (decoder, LATENT)):
                with pytest.raises(RuntimeError):
                    f(*drawn(*shapes))
        else:
            assert net(*drawn(*STEP))[3].shape == (2, BELIEF)
            assert decoder(*drawn(*LATENT)).shape == (2, 3, 5, 5)


def test_recurrence_in_double_precision():
    """torchrl's is always in float32, its weights or not."""
    for lib in libraries():
        net, inputs = prior(lib).double(), [x.double() for x in drawn(*STEP)]
        if lib.name == "torchrl":
            with pytest.raises(RuntimeError):
                net(*inputs)
        else:
            assert net(*inputs)[3].dtype == torch.float64


def test_squashed_means():
    """torchrl squashes the mean when a distribution is updated, not when it is made."""
    loc, scale = torch.tensor([4.0, -9.0]), torch.ones(2)
    theirs, ours = (lib.modules.IndependentNormal(loc, scale, tanh_loc=True) for lib in libraries())
    assert torch.equal(theirs.mean, loc)
    theirs.update(loc, scale)
    torch.testing.assert_close(ours.mean, theirs.mean)
