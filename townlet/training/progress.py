"""What a person sees while a run trains: a bar in a terminal, or a line now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ..evaluation.play import Evaluation
from ..settings.spreads import named
from ..support.intervals import mean_interval
from ..support.text import clock
from .statistics import EpisodeStatistics


class Progress:
    """Shows steps/s, updates/s, the latest score and the time left.

    Args:
        total: environment steps per member at the end of the run.
        start: steps per member already taken.
        members: P, the number of members; steps/s counts the steps of all.
        stream: where to show it; None is standard error. A terminal gets a bar, anything else gets lines.
        every: seconds between lines.
    """

    def __init__(
        self, total: int, *, start: int = 0, members: int = 1, stream: TextIO | None = None, every: float = 30.0
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.total, self.start, self.members, self.every = total, start, members, every
        self.begun = self.last = time.monotonic()
        self.first_updates: int | None = None
        self.bar: Any = None
        if self.stream.isatty():
            layout = "{percentage:3.0f}%|{bar}| {n:,.0f}/{total:,.0f} steps [{elapsed}<{remaining}{postfix}]"
            self.bar = tqdm(
                total=total, initial=start, file=self.stream, bar_format=layout, mininterval=0.2, dynamic_ncols=True
            )

    def show(self, steps: int, updates: int, score: Callable[[], str]) -> None:
        """Show the progress, if it is time to. The call is cheap when it is not.

        Args:
            steps: environment steps taken, per member.
            updates: updates made, per member.
            score: returns a text such as "survival 120"; it is called only when there is something to show.
        """
        now = time.monotonic()
        if self.first_updates is None:
            self.first_updates = updates
        if now - self.last < (0.25 if self.bar is not None else self.every) and steps < self.total:
            return
        self.last = now
        seconds = max(now - self.begun, 1e-9)
        rate = (steps - self.start) / seconds
        text = f"{rate * self.members:,.0f} steps/s, {(updates - self.first_updates) / seconds:,.1f} updates/s"
        scored = score()
        text += f", {scored}" if scored else ""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(steps - self.bar.n)
            return
        left = (self.total - steps) / rate if rate > 0 else float("inf")
        self.say(f"{steps:,}/{self.total:,} steps ({100 * steps / self.total:.0f}%), {text}, {clock(left)} left")

    def say(self, text: str) -> None:
        """Print ``text`` on a line of its own, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def score_text(episodes: EpisodeStatistics, evaluation: Evaluation | None, hyper: Mapping[str, np.ndarray]) -> str:
    """The scores of recent training episodes and of the latest evaluation, as text.

    Both are means over members with the half-widths of their 95% intervals. Of several members the best is named.

    Args:
        episodes: statistics of the training episodes.
        evaluation: the latest evaluation, if there was one.
        hyper: name -> ``[P]``. Those that differ between members are shown for the best one.
    """
    recent, parts = episodes.recent, []
    if not np.isnan(recent).all():
        parts.append(f"{episodes.score_name} {_mean_text(recent)}")
        if len(recent) > 1:
            best = int(np.nanargmax(recent))
            parts[0] += f" (best {recent[best]:.4g}, {named(best, hyper)})"
    if evaluation is not None:
        parts.append(f"greedy {_mean_text(evaluation.score.mean(axis=1))}")
    return ", ".join(parts)


def _mean_text(values: np.ndarray) -> str:
    mean, half = mean_interval(values[~np.isnan(values)])
    return f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}"
