"""The memory probe, which tells whether a trained agent uses its memory: see `townlet.evaluation.memory`."""

from .evaluation.memory import DisturbedActor, MemoryProbe, influence, probe
from .support.intervals import Interval

__all__ = ["DisturbedActor", "Interval", "MemoryProbe", "influence", "probe"]
