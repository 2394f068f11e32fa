"""The first episode of an evaluation as a video, frame by frame into the file."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np

from bench.errors import ConfigError
from bench.evaluate import Evaluator, Rollouts, make_env
from bench.trained.evaluate import Chosen, How, Told
from bench.trained.run import Trained

_FRAMES_PER_SECOND = 30  # of environments that do not say
_NO_SCREEN = {
    "MUJOCO_GL": "MuJoCo draws by OpenGL: set MUJOCO_GL=egl (a GPU's driver, or Mesa's libEGL) or "
    "MUJOCO_GL=osmesa (the system's libOSMesa)",
    "pygame": "pip install 'rlobj-bench[video]'",
}


def check_possible(path: Path, runs: int) -> None:
    """Raises ConfigError for several runs, a file of another kind, or where nothing encodes it."""
    if runs > 1:
        raise ConfigError(f"--video shows one run and {runs} are named: name one")
    if path.suffix != ".mp4":
        raise ConfigError(f"--video {path}: name a file that ends in .mp4")
    if importlib.util.find_spec("av") is None:
        raise ConfigError("--video needs PyAV: pip install 'rlobj-bench[video]'")


def film(run: Trained, how: How, path: Path, told: Told) -> Rollouts:
    """Write the video of episode 0 and give its return.

    Raises:
        ConfigError: when the environment cannot draw here.
    """
    share = int(run.config["protocol"]["eval_episodes"])
    policy = Chosen(run, share, lambda steps: told(0, steps))
    with Movie(path) as movie:
        evaluator = Evaluator(how.env_id, [how.seed], 1, how.horizon, movie.watch)
        try:
            return evaluator.run(policy, run.step)
        finally:
            evaluator.close()


class Movie:
    """An mp4 file (H.264) that is in its place when it is whole.

    Raises:
        ConfigError: from ``watch`` and from the environment that it returns, when it cannot draw.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._temporary = path, path.with_name(f".tmp-{path.name}")
        self._container: Any = None
        self._stream: Any = None
        self.frames_per_second = _FRAMES_PER_SECOND

    def __enter__(self) -> Movie:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._container is not None:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        self._temporary.unlink(missing_ok=True)

    def watch(self, env_id: str, horizon: int | None) -> Watched:
        """An environment whose frames go into the film."""
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen otherwise
        try:
            env = make_env(env_id, horizon, render_mode="rgb_array")
        except ConfigError as error:  # without pictures it could be made
            raise _blind(env_id, str(error)) from None
        self.frames_per_second = int(env.metadata.get("render_fps", _FRAMES_PER_SECOND))
        return Watched(env, self, env_id)

    def add(self, picture: np.ndarray) -> None:
        """A frame uint8 ``[height, width, 3]``; an odd last row or column is cut off, which H.264
        cannot hold."""
        import av

        height, width = (size - size % 2 for size in picture.shape[:2])
        if self._container is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._temporary), "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=self.frames_per_second)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"  # what browsers play
        frame = np.ascontiguousarray(picture[:height, :width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))


class Watched(gymnasium.Wrapper):
    """Every state that an episode reaches is drawn, the first one included."""

    def __init__(self, env: Any, movie: Movie, env_id: str) -> None:
        super().__init__(env)
        self.movie, self.env_id = movie, env_id

    def reset(self, **options: Any) -> Any:
        found = super().reset(**options)
        self.movie.add(self._picture())
        return found

    def step(self, action: Any) -> Any:
        found = super().step(action)
        self.movie.add(self._picture())
        return found

    def _picture(self) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing screen is said once, below
            try:
                picture = self.env.render()
            except Exception as error:  # each drawing library has types of its own
                raise _blind(self.env_id, str(error) or type(error).__name__) from None
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise _blind(self.env_id, f"it gives a {type(picture).__name__}, not a picture")
        return picture


def _blind(env_id: str, why: str) -> ConfigError:
    mend = _NO_SCREEN["pygame" if "pygame" in why else "MUJOCO_GL"]
    return ConfigError(f"--video: {env_id} cannot draw here ({why.splitlines()[0]}); {mend}")
