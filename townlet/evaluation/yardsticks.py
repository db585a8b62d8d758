"""The policies that trained agents are measured against: the Town's hand-written ones, and random actions elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..envs.adapter import VectorAdapter
from .play import Actor


def yardsticks() -> Mapping[str, Callable[[VectorAdapter], Actor]]:
    """The Town's hand-written policies: name -> the ``policy`` that `evaluate_policy` takes."""
    from ..envs import TownVectorEnv
    from ..envs.town import scripted

    policies = {
        "random": scripted.random_policy,
        "bed-sitter": scripted.bed_sitter_policy,
        "scripted (sees everything)": scripted.scripted_policy,
    }

    def actor(policy: scripted.Policy) -> Callable[[VectorAdapter], Actor]:
        def bind(adapter: VectorAdapter) -> Actor:
            town, rng = adapter.env, np.random.default_rng(0)
            assert isinstance(town, TownVectorEnv)

            def act(obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> np.ndarray:
                assert legal is not None  # the Town always gives its mask
                return policy(scripted.view(town, legal, rng))

            return act

        return bind

    return {name: actor(policy) for name, policy in policies.items()}


def random_actor(adapter: VectorAdapter) -> Actor:
    """An actor that chooses uniformly among all actions, for worlds without yardsticks."""
    rng = np.random.default_rng(0)
    return lambda obs, legal, reset: rng.integers(0, adapter.n_actions, adapter.num_envs)
