"""``bench evaluate --video``: films of the episodes that are evaluated."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from bench.errors import ConfigError
from bench.evaluate import make_env
from bench.trained.evaluate import how_of, roll_out
from bench.trained.film import Movie, film
from tests.bench.test_cli import fails
from tests.bench.trained_runs import Factory

FILMS = pytest.mark.skipif(
    importlib.util.find_spec("av") is None or importlib.util.find_spec("pygame") is None,
    reason="needs PyAV and pygame: pip install 'rlobj-bench[video]'",
)


@FILMS
@pytest.mark.parametrize("algo", ["dqn", "dreamer"])
def test_a_film_shows_the_first_episode(algo: str, trained: Factory, tmp_path: Path) -> None:
    """Catches: a film of another episode or of another policy, without its first or last picture,
    of a file that no player can read."""
    import av

    run, file = trained(algo).open(1), tmp_path / "folder" / "film.mp4"
    how = how_of(run)
    found = film(run, how, file, lambda over, steps: None)
    whole = roll_out(run, how)
    assert found.returns[0, 0] == whole.returns[0, 0]
    with av.open(str(file)) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.name == "h264"
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(pictures) == whole.lengths[0, 0] + 1
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50
    assert [p.name for p in file.parent.iterdir()] == ["film.mp4"]


@FILMS
def test_pictures_of_odd_size_lose_an_edge(tmp_path: Path) -> None:
    import av

    with Movie(tmp_path / "odd.mp4") as movie:
        for _ in range(3):
            movie.add(np.full((65, 33, 3), 200, np.uint8))
    with av.open(str(tmp_path / "odd.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == (32, 64)


@FILMS
def test_a_film_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Movie(tmp_path / "film.mp4") as movie:
        movie.add(np.zeros((64, 64, 3), np.uint8))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_filmed_says_what_to_do(
    trained: Factory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = trained("dqn")
    words = ["evaluate", made.folders[0], "--video"]
    assert "ends in .mp4" in fails(capsys, *words, tmp_path / "film.gif")
    line = fails(capsys, "evaluate", made.folders[1], *words[1:], tmp_path / "film.mp4")
    assert "--video shows one run and 2 are named" in line
    monkeypatch.setattr("bench.trained.film.importlib.util.find_spec", lambda name: None)
    line = fails(capsys, *words, tmp_path / "film.mp4")
    assert "pip install 'rlobj-bench[video]'" in line


@pytest.mark.parametrize(
    ("fault", "mend"),
    [("gladLoadGL error", "MUJOCO_GL=egl"), ("pygame is not installed", "rlobj-bench[video]")],
)
def test_an_environment_that_cannot_draw_here_says_what_to_do(
    fault: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MuJoCo without a screen, and as gymnasium without pygame."""
    movie = Movie(tmp_path / "film.mp4")
    env = movie.watch("CartPole-v1", None)

    def render() -> None:
        raise RuntimeError(f"{fault}\nand more")

    monkeypatch.setattr(env.env.unwrapped, "render", render)
    with pytest.raises(ConfigError, match=rf"--video: CartPole-v1 cannot draw here \({fault}\).*"):
        env.reset(seed=0)
    with pytest.raises(ConfigError, match=mend.replace("[", r"\[")):
        env.reset(seed=0)
    with pytest.raises(ConfigError, match="--video: bench/TwoStep-v0 cannot draw here"):
        movie.watch("bench/TwoStep-v0", None)


def test_a_missing_library_to_draw_with_is_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """MUJOCO_GL=osmesa without libOSMesa keeps MuJoCo's tasks from being made at all."""
    import gymnasium

    def broken(*args: object, **options: object) -> None:
        raise AttributeError("no attribute 'glGetError'")

    monkeypatch.setattr(gymnasium, "make", broken)
    monkeypatch.setitem(os.environ, "MUJOCO_GL", "osmesa")
    with pytest.raises(ConfigError, match="MUJOCO_GL=osmesa: is its library installed"):
        make_env("Hopper-v5")
