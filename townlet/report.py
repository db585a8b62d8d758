"""The table of a run, its agents and its yardsticks (see `townlet.evaluation`), and the end of a run (`finish`)."""

from .evaluation.agent import Agent
from .evaluation.table import Report, Row, compare
from .evaluation.yardsticks import random_actor, yardsticks
from .training.finish import finish

__all__ = ["Agent", "Report", "Row", "compare", "finish", "random_actor", "yardsticks"]
