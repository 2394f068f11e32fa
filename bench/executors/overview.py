"""All tasks on a terminal: state, progress, pace, time left and last score of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bench.engine.task import Task

_STATES = ("running", "waiting", "retrying", "done", "diverged", "failed", "stopped")
_SPARE_LINES = 4  # of the terminal, for messages and the last line


class Overview:
    """A bar per task as far as they fit on the screen, those that run first of all, and a last line
    that counts all of them."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self.room = max(4, console.height - _SPARE_LINES)
        self.states = {task.name: "waiting" for task in tasks}
        self.progress = Progress(
            TextColumn("{task.fields[state]:<8}"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>8.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]:>7}"),
            TextColumn("{task.fields[left]:>15}"),
            TextColumn("{task.fields[score]}"),
            console=console,
        )
        self._bars: dict[str, TaskID] = {
            task.name: self.progress.add_task(
                task.name, total=task.steps, state="waiting", rate="", left="", score=""
            )
            for task in tasks
        }
        self._all = self.progress.add_task(
            "", total=len(tasks), state="all", rate="", left="", score="", visible=len(tasks) > 1
        )
        self._arrange()

    def update(self, task: Task, state: str | None = None, **facts: object) -> None:
        """Facts are fields of the bar: completed, rate, left, score."""
        if state is not None:
            self.states[task.name] = facts["state"] = state
        self.progress.update(self._bars[task.name], **facts)  # type: ignore[arg-type]
        if state is not None:
            self._arrange()

    def _arrange(self) -> None:
        """Show what fits: first what runs or failed, then what waits, then what is done."""
        counts = Counter(self.states.values())
        text = ", ".join(f"{counts[s]} {s}" for s in _STATES if counts[s])
        over = counts["done"] + counts["diverged"] + counts["failed"]
        self.progress.update(self._all, completed=over, score=text)
        order = {"waiting": 1, "done": 2, "diverged": 2}
        first = sorted(self.states, key=lambda name: order.get(self.states[name], 0))
        for place, name in enumerate(first):
            self.progress.update(self._bars[name], visible=place < self.room)
