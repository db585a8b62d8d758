"""How well a run's agents do, beside the same agents without memory and the yardstick policies.

All of them play the same unseen episodes. Intervals are 95% by Student's t: over episodes for one member, over members
where there are several, because episodes of one member are not independent runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..envs.adapter import VectorAdapter
from ..settings.spreads import named
from ..support.intervals import mean_interval
from .agent import Agent
from .play import Actor, evaluate_policy
from .yardsticks import random_actor, yardsticks


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the policy.
        scores: float64 ``[P, N]``, of P members in N episodes.
        of_members: whether the interval is over the members' means rather than over episodes.
    """

    name: str
    scores: np.ndarray
    of_members: bool

    @property
    def interval(self) -> tuple[float, float]:
        """The mean and the half-width of its 95% interval, NaN where there is none."""
        return mean_interval(self.scores.mean(axis=1) if self.of_members else self.scores)


@dataclass(frozen=True)
class Report:
    """The table of one run.

    Attributes:
        score_name: "survival" or "return".
        rows: one for each policy, in the order shown.
        cap: the world's limit on survival in ticks; None where it has none.
    """

    score_name: str
    rows: list[Row]
    cap: float | None

    def text(self) -> str:
        """The table for a terminal."""
        width = max(34, *(len(row.name) + 1 for row in self.rows))
        head = f"{'policy':<{width}}{'mean':>10}{'95% interval':>22}{'median':>10}"
        lines = [head + (f"{'at cap':>9}" if self.cap else "")]
        for row in self.rows:
            mean, half = row.interval
            around = "-" if math.isnan(half) else f"{mean - half:.4g} .. {mean + half:.4g}"
            line = f"{row.name:<{width}}{mean:>10.4g}{around:>22}{np.median(row.scores):>10.4g}"
            lines.append(line + (f"{100 * np.mean(row.scores >= self.cap):>8.0f}%" if self.cap else ""))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The table for summary.json: for each policy the mean, the interval and the number of episodes."""
        out = {}
        for row in self.rows:
            mean, half = row.interval
            low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
            out[row.name] = {"mean": mean, "low": low, "high": high, "episodes": int(row.scores.size)}
        return out


def compare(agent: Agent, episodes: int, seed: int, say: Callable[[str], None] = lambda text: None) -> Report:
    """Evaluate the agent, the agent with its state zeroed at every step, and the yardsticks, on the same episodes.

    Args:
        agent: the trained agent.
        episodes: the number of episodes of each policy, and of each member.
        seed: the seed of the episodes.
        say: receives a line as each evaluation begins.
    """
    config, P = agent.config, agent.config.members
    hand_made = yardsticks() if config.is_town else {"random": random_actor}
    rows: list[Row] = []
    for name in [n for n in hand_made if not n.startswith("scripted")]:
        say(f"evaluating {name}")
        rows.append(_policy_row(name, agent, hand_made[name], episodes, seed))
    say("evaluating the trained agent")
    trained = agent.evaluate(episodes, seed)
    if config.memory:
        rows.append(Row("trained, state zeroed each step", agent.evaluate(episodes, seed, memory=False).score, P > 1))
    rows.append(Row("trained" if config.memory else "trained without memory", trained.score, P > 1))
    if P > 1:
        rows += [Row(f"  {named(p, agent.hyper)}", trained.score[p : p + 1], False) for p in range(P)]
    for name in [n for n in hand_made if n.startswith("scripted")]:
        say(f"evaluating {name}")
        rows.append(_policy_row(name, agent, hand_made[name], episodes, seed))
    cap = float(config.evaluation_args.get("max_steps", 500)) if config.is_town else None
    return Report(trained.score_name, rows, cap)


def _policy_row(name: str, agent: Agent, policy: Callable[[VectorAdapter], Actor], episodes: int, seed: int) -> Row:
    limit = agent.config.eval_max_steps
    return Row(name, evaluate_policy(policy, agent.worlds, episodes, seed, max_steps=limit, stream="test").score, False)
