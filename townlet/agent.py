"""A trained agent: see `townlet.evaluation.agent`."""

from .evaluation.agent import Agent

__all__ = ["Agent"]
