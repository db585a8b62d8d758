"""What a finished run amounts to: its agents, the same agents without memory, and the yardstick policies.

All play the same unseen episodes. An interval is 95%, Student's t: over episodes for one member, over members where
there are several (episodes of one member are not independent runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from . import checkpoint
from .assembly import build_network, open_worlds
from .config import Config
from .envs.adapter import VectorAdapter
from .evaluate import Actor, Evaluation, evaluate, evaluate_policy, mean_interval
from .html.report import try_report
from .records import write_json
from .runs import read_agent
from .spreads import named
from .trainer import Trainer


@dataclass(frozen=True)
class Agent:
    """Trained members and the settings they were trained with."""

    config: Config
    network: Any
    params: dict[str, Tensor]  # name -> [P, ...]
    env_steps: int
    hyper: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [P], the members' own, at that step

    @classmethod
    def load(cls, run: str | Path) -> Agent:
        """From a run folder's newest checkpoint, from a checkpoint file or an agent.ckpt.

        Raises CheckpointError, also where the weights do not fit the world that their settings name now.
        """
        run = Path(run)
        if not run.exists():
            raise checkpoint.CheckpointError(f"{run}: there is no such run folder or checkpoint")
        path = run if run.is_file() else checkpoint.latest(run / "checkpoints")
        tree = read_agent(path)
        config = Config.from_dict(tree["config"], source=str(path))
        adapter = open_worlds(config, 1, config.evaluation_args)
        network = build_network(config, adapter)
        adapter.close()
        for name, shape in network.shapes().items():
            held = tuple(tree["weights"][name].shape[1:]) if name in tree["weights"] else None
            if held != shape:
                raise checkpoint.CheckpointError(
                    f"{path}: {name} is {'missing' if held is None else list(held)}; expected {list(shape)}, as the "
                    f"observations of {config.env} are now (did its default arguments change since this was trained?)"
                )
        return cls(config, network, tree["weights"], tree["env_steps"], tree["hyper"])

    @classmethod
    def of(cls, trainer: Trainer) -> Agent:
        """The agent as it stands in ``trainer``."""
        hyper = trainer.schedules.state_dict()
        return cls(trainer.config, trainer.network, trainer.population.averaged, trainer.env_steps, hyper)

    def member(self, number: int) -> dict[str, Tensor]:
        """The parameters of one member, [1, ...]. Raises ValueError for one that there is not."""
        if not 0 <= number < self.config.members:
            raise ValueError(f"--member {number}: expected 0 to {self.config.members - 1}")
        return {k: v[number : number + 1] for k, v in self.params.items()}

    def worlds(self, n: int) -> VectorAdapter:
        """``n`` evaluation environments."""
        return open_worlds(self.config, n, self.config.evaluation_args, workers=self.config.workers)

    def evaluate(self, episodes: int, seed: int, *, memory: bool | None = None, stream: str = "test") -> Evaluation:
        """Greedy episodes; ``memory`` None runs the agent as it was trained."""
        c = self.config
        keep = c.memory if memory is None else memory
        limits = {"max_steps": c.eval_max_steps, "stream": stream}
        return evaluate(self.network, self.params, self.worlds, episodes, seed, memory=keep, **limits)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    scores: np.ndarray  # float64 [P, N]
    of_members: bool  # the interval is over members' means

    @property
    def interval(self) -> tuple[float, float]:
        """Mean and half-width."""
        return mean_interval(self.scores.mean(axis=1) if self.of_members else self.scores)


@dataclass(frozen=True)
class Report:
    """The table of one run."""

    score_name: str  # "survival" or "return"
    rows: list[Row]
    cap: float | None  # the world's limit on survival

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
        """For summary.json: per policy the mean, the interval, the episodes."""
        out = {}
        for row in self.rows:
            mean, half = row.interval
            low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
            out[row.name] = {"mean": mean, "low": low, "high": high, "episodes": int(row.scores.size)}
        return out


def yardsticks() -> Mapping[str, Callable[[VectorAdapter], Actor]]:
    """The Town's hand-written policies: name -> what ``evaluate_policy`` takes."""
    from .envs.town import scripted

    policies = {
        "random": scripted.random_policy,
        "bed-sitter": scripted.bed_sitter_policy,
        "scripted (sees everything)": scripted.scripted_policy,
    }

    def actor(policy: scripted.Policy) -> Callable[[VectorAdapter], Actor]:
        def bind(adapter: VectorAdapter) -> Actor:
            rng = np.random.default_rng(0)
            return lambda obs, legal, reset: policy(scripted.view(adapter.env, legal, rng))  # type: ignore[arg-type]

        return bind

    return {name: actor(policy) for name, policy in policies.items()}


def random_actor(adapter: VectorAdapter) -> Actor:
    """Uniform over all actions, for worlds without yardsticks."""
    rng = np.random.default_rng(0)
    return lambda obs, legal, reset: rng.integers(0, adapter.n_actions, adapter.num_envs)


def compare(agent: Agent, episodes: int, seed: int, say: Callable[[str], None] = lambda text: None) -> Report:
    """Evaluate the agent, the agent with its state zeroed at every step, and the yardsticks, on the same episodes."""
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


def finish(trainer: Trainer) -> Report | None:
    """The end of a run: final comparison, survival.png (Town), learning.png and summary.json in its folder.

    Returns None when the run was stopped early or asks for no final evaluation; summary.json is written all the same.
    """
    config, folder = trainer.config, trainer.folder
    report = None
    if trainer.stopped_by is None and config.final_eval_episodes:
        report = compare(Agent.of(trainer), config.final_eval_episodes, config.seed, trainer.say)
    if folder is None:
        return report
    from . import plots

    plots.learning_curve(folder / "metrics.csv", folder / "learning.png")
    if report is not None and config.is_town:
        plots.survival(report, folder / "survival.png")
    summary: dict[str, Any] = {
        "env": config.env,
        "members": config.members,
        "env_steps": trainer.env_steps,
        "total_steps": config.total_steps,
        "updates": trainer.updates,
        "finished": trainer.env_steps >= config.total_steps,
        "stopped_by": None if trainer.stopped_by is None else trainer.stopped_by.name,
        "seconds": round(trainer.elapsed, 3),
        "seconds_by_phase": {k: round(v, 3) for k, v in trainer.seconds.items()},
    }
    if config.members > 1:
        hyper = trainer.schedules.hyper
        summary["hyper_parameters"] = {name: v.tolist() for name, v in hyper.items() if len(set(v)) > 1}
    if config.pbt_every:
        summary["copies"] = len(trainer.pbt.lineage)
    if report is not None:
        summary |= {"score": report.score_name, "policies": report.to_dict()}
    write_json(folder / "summary.json", summary)
    try_report(folder, trainer.say)
    return report
