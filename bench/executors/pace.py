"""How long a run still takes."""

from __future__ import annotations

_WINDOW_SECONDS = 60.0


class Pace:
    """How long a run still takes, from its steps of the last minute, evaluations included.

    Marks are set after evaluations, ``interval`` steps apart, so that between two lie training and
    evaluations in proportion; at every report of progress where there are none (``interval`` 0).
    The first mark comes after the first chunk: starting, tracing and warming up are over then.
    """

    def __init__(self, total: int, interval: int) -> None:
        self.total, self.interval = total, interval
        self._marks: list[tuple[int, float]] = []  # step, time

    def note(self, step: int, now: float, *, evaluation: bool) -> None:
        if self._marks and self._marks[-1][0] == step:  # an evaluation after its step's progress
            self._marks[-1] = (step, now)
        elif evaluation or not self.interval or not self._marks:
            self._marks.append((step, now))
        while len(self._marks) > 2 and (
            self._marks[0][0] % max(self.interval, 1)  # the first chunk's, inside an interval
            or now - self._marks[1][1] >= _WINDOW_SECONDS
        ):
            del self._marks[0]

    def left(self, step: int) -> float | None:
        """Seconds from ``step`` to the end; None while unknown."""
        if len(self._marks) < 2:
            return None
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        if last - first < 0.75 * self.interval:  # an evaluation would count too much
            return None
        return (end - start) / (last - first) * (self.total - step)


def spell_left(seconds: float | None) -> str:
    """'45 s left', '12 min left', '3 h 20 min left'; '' for an unknown time."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s left"
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"
