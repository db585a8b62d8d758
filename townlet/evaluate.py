"""Greedy evaluation: see `townlet.evaluation.play`. Intervals: see `townlet.support.intervals`."""

from .evaluation.play import (
    Actor,
    Evaluation,
    GreedyActor,
    evaluate,
    evaluate_actor,
    evaluate_policy,
    evaluation_seeds,
    play,
    training_seeds,
)
from .support.intervals import mean_interval, t95

__all__ = [
    "Actor",
    "Evaluation",
    "GreedyActor",
    "evaluate",
    "evaluate_actor",
    "evaluate_policy",
    "evaluation_seeds",
    "mean_interval",
    "play",
    "t95",
    "training_seeds",
]
