"""The mirror itself: the only file that knows MLflow."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError, RunError
from bench.store import iter_runs
from bench.track.folders import Rewritten, Seed, digest, read_seed, stamp, unsent, values

BATCH = 990  # MLflow takes 1000 metrics, parameters and tags together in one call
STATUS = {"done": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "killed": "KILLED"}
COMPARISON = "comparison"


class MirrorError(BenchError):
    """MLflow is missing, unreachable or refuses; the runs on disk are not touched by it."""


@dataclass
class SyncReport:
    """What one pass (or, followed, all passes) did."""

    uri: str
    runs: int = 0  # seed folders looked at
    created: int = 0  # MLflow runs made, parents and the comparison included
    metrics: int = 0  # values sent
    artifacts: int = 0  # files sent
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.runs} runs in MLflow at {self.uri}: {self.created} new, "
        text += f"{self.metrics} values and {self.artifacts} files sent"
        return "\n".join([text, *(f"left out: {problem}" for problem in self.problems)])


# -- the store -------------------------------------------------------------------------------------


def default_uri(out: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or a database of its own in ``out``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(out).resolve()}/mlflow.db"


def import_mlflow() -> None:
    """Import mlflow without its chatter. Raises MirrorError where it is not installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise MirrorError(
            "mlflow is not installed; the runs on disk are complete: "
            "`bench sync` will fill MLflow later, once it is installed"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # we come back ourselves
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.tracking  # noqa: F401
    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _calling(uri: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or the network raises into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BenchError:
        raise
    except Exception as error:  # requests, sqlalchemy, sqlite3, mlflow: each has its own
        words = " ".join(str(error).split())[:300]
        raise MirrorError(
            f"MLflow at {uri}: {type(error).__name__}: {words}; "
            "the runs on disk are safe, run `bench sync` when it is back"
        ) from error


@contextmanager
def _exclusive(path: Path, patience: float = 120.0) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MirrorError(f"{path}: held by another sync; wait for it") from None
                time.sleep(0.1)
        yield


def init_store(uri: str) -> None:
    """Create and migrate the store once, before anything else opens it.

    Processes that open a fresh sqlite store together break it for good, so they take turns here;
    sqlite is also put into WAL mode, where readers and the writer do not block each other.
    """
    import_mlflow()
    from mlflow.tracking import MlflowClient

    path = (
        Path(uri.removeprefix("sqlite:///").partition("?")[0])
        if uri.startswith("sqlite:///")
        else None
    )
    with _calling(uri):
        if path is None:
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
            return
        with _exclusive(path.with_name(f"{path.name}.lock")):
            import sqlite3

            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
            connection = sqlite3.connect(path)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()


# -- the mirror ------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What we know of a run in MLflow."""

    id: str
    tags: dict[str, str]
    status: str


class Mirror:
    """The way from one results folder to one MLflow store; remembers between passes."""

    def __init__(self, out: Path, uri: str | None = None):
        self.out = Path(out).resolve()
        self.uri = uri or default_uri(self.out)
        self._client: Any = None
        self._forget()

    def _forget(self) -> None:
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, _Run] = {}
        self._seen: dict[str, tuple[object, ...]] = {}
        self._states: dict[str, dict[str, Seed]] = {}

    def sync(self) -> SyncReport:
        """One pass. Raises MirrorError where MLflow fails; the next pass then starts afresh."""
        report = SyncReport(self.uri)
        if not self.out.is_dir():
            return report  # followed from the start of a first run
        if self._client is None:
            init_store(self.uri)
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(tracking_uri=self.uri)
        try:
            with _calling(self.uri), _exclusive(self.out / ".mlflow-sync.lock"):
                self._pass(report)
        except MirrorError:
            self._forget()
            raise
        return report

    def _pass(self, report: SyncReport) -> None:
        self._experiments.clear()  # look again once: another sync may have made runs meanwhile
        cells = set()
        for folder in iter_runs(self.out):
            report.runs += 1
            now = stamp(folder)
            if self._seen.get(str(folder)) == now:
                continue
            try:
                seed = read_seed(self.out, folder)
                self._states.setdefault(seed.cell, {})[seed.key] = seed
                self._send_seed(seed, report)
            except (RunError, ValueError) as error:  # one damaged folder must not stop the others
                report.problems.append(str(error) if str(folder) in str(error) else
                                       f"{folder}: {error}")  # fmt: skip
                continue
            cells.add(seed.cell)
            self._seen[str(folder)] = now
        for cell in sorted(cells):
            self._close_cell(cell)
        self._send_comparison(report)

    def _experiment(self, name: str) -> str:
        """The id of an experiment; its runs are looked up once."""
        if name in self._experiments:
            return self._experiments[name]
        found = self._client.get_experiment_by_name(name)
        if found is None:
            local = not self.uri.startswith(("http:", "https:", "databricks"))
            place = (self.out / "mlartifacts").as_uri() if local else None
            id_ = self._client.create_experiment(name, artifact_location=place)
        else:
            id_ = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(id_)
        token = None
        while True:
            page = self._client.search_runs([id_], max_results=1000, page_token=token)
            for run in page:
                if "bench.run" in run.data.tags:
                    self._runs[run.data.tags["bench.run"]] = _Run(
                        run.info.run_id, dict(run.data.tags), run.info.status
                    )
            token = page.token
            if not token:
                break
        self._experiments[name] = id_
        return id_

    def _run(self, key: str, experiment: str, report: SyncReport, **made: Any) -> _Run:
        """The run with the tag ``bench.run = key``, made where it is missing."""
        id_ = self._experiment(experiment)
        if key not in self._runs:
            tags = {"bench.run": key, **made.pop("tags", {})}
            run = self._client.create_run(id_, tags=tags, **made)
            self._runs[key] = _Run(run.info.run_id, tags, "RUNNING")
            report.created += 1
        return self._runs[key]

    def _send_seed(self, seed: Seed, report: SyncReport) -> None:
        dataset = str(seed.config.get("dataset"))
        parent = self._run(
            seed.cell, dataset, report, start_time=seed.millis("started"),
            run_name=f"{seed.name} {seed.config.get('config')}",
        )  # fmt: skip
        params = {k: v for k, v in seed.params().items() if k not in ("seed", "steps")}
        if "bench.described" not in parent.tags:
            self._describe(parent, seed, params)
        for _ in range(2):
            run = self._run(
                seed.key, dataset, report, start_time=seed.millis("started"),
                run_name=f"{seed.name} {seed.folder.name}",
                tags={"mlflow.parentRunId": parent.id, "bench.seed": str(seed.config.get("seed"))},
            )  # fmt: skip
            try:
                self._describe(run, seed, seed.params())
                self._send_values(run, seed, report)
                break
            except Rewritten:  # the folder was made anew: so is its mirror
                self._client.delete_run(run.id)
                del self._runs[seed.key]
        self._tag(run, seed.tags())
        self._set_status(run, STATUS.get(seed.state, "RUNNING"), seed.millis("updated"))

    def _describe(self, run: _Run, seed: Seed, params: dict[str, str]) -> None:
        """Parameters and the dataset, once. Raises Rewritten where others were sent before."""
        data = seed.config.get("data") or {}
        mark = digest(json.dumps([params, data], sort_keys=True))
        if run.tags.get("bench.described") == mark:
            return
        if "bench.described" in run.tags:
            raise Rewritten
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), 100):
            self._client.log_batch(run.id, params=items[start : start + 100])
        dataset = Dataset(
            name=str(seed.config.get("dataset")),
            digest=str(data.get("fingerprint"))[:12],
            source_type="bench",
            source=json.dumps({"dataset": seed.config.get("dataset")}),
            profile=json.dumps(data.get("stats") or {}),
        )
        tags = [
            InputTag("mlflow.data.context", "training"),
            InputTag("fingerprint", str(data.get("fingerprint"))),
        ]
        self._client.log_inputs(run.id, [DatasetInput(dataset, tags)])
        self._tag(run, {"bench.described": mark})

    def _send_values(self, run: _Run, seed: Seed, report: SyncReport) -> None:
        durable = int(seed.status.get("step") or 0)
        metrics, metrics_mark = unsent(
            seed.folder / "metrics.csv", 3, run.tags.get("bench.sent.metrics", ""), durable
        )
        scores, scores_mark = unsent(
            seed.folder / "scores.csv", 5, run.tags.get("bench.sent.scores", ""), durable
        )
        from mlflow.entities import Metric

        when = seed.millis("started") or 0  # the same at every attempt: see the top of the file
        items = [Metric(name, value, when, step) for name, value, step in values(metrics, scores)]
        for start in range(0, len(items), BATCH):
            chunk = items[start : start + BATCH]
            self._client.log_batch(run.id, metrics=chunk)
            report.metrics += len(chunk)
        self._tag(run, {"bench.sent.metrics": metrics_mark, "bench.sent.scores": scores_mark})

    def _tag(self, run: _Run, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        new = {key: value for key, value in tags.items() if run.tags.get(key) != value}
        if new:
            self._client.log_batch(run.id, tags=[RunTag(k, v) for k, v in new.items()])
            run.tags |= new

    def _set_status(self, run: _Run, status: str, end: int | None) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status, end)
        run.status = status

    def _close_cell(self, cell: str) -> None:
        """A parent runs while one seed does, and fails where one failed."""
        seeds = self._states[cell].values()
        found = {STATUS.get(seed.state, "RUNNING") for seed in seeds}
        order = ("RUNNING", "FAILED", "KILLED", "FINISHED")
        status = next(name for name in order if name in found)
        ends = [end for seed in seeds if (end := seed.millis("updated"))]
        newest = max(seeds, key=lambda seed: str(seed.status.get("updated")))
        state = {
            "bench.state": " ".join(sorted({seed.state for seed in seeds})),
            "bench.reason": "",
        }
        self._tag(self._runs[cell], {**newest.tags(), **state})
        self._set_status(self._runs[cell], status, max(ends, default=None))

    def _send_comparison(self, report: SyncReport) -> None:
        folder = self.out / "compare"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return
        parts = [f"{path.relative_to(folder)} {digest(path.read_bytes())}" for path in files]
        mark = digest("\n".join(parts))
        run = self._run("compare", COMPARISON, report, run_name=COMPARISON)
        if run.tags.get("bench.sent.files") != mark:
            self._client.log_artifacts(run.id, str(folder))
            report.artifacts += len(files)
            self._tag(run, {"bench.sent.files": mark})
        self._set_status(run, "FINISHED", None)
