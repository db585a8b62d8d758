"""MiniGrid's observations, in spaces that say what they hold."""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, MultiDiscrete


class SymbolicObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A wrapper that gives MiniGrid's image the bounds of its symbols, and turns its mission into numbers.

    The image ``[H, W, 3]`` uint8 holds the object (11 kinds), the colour (6) and the state (3 of a door, 4 directions
    of an agent) of each cell. The environment itself gives 0..255 as bounds. The mission is a sentence in which some
    words change; it becomes the numbers of those words. A mission that never changes is left out.

    Args:
        env: a MiniGrid environment.

    Raises:
        ValueError: the observation is not MiniGrid's, or its missions are free text (BabyAI).
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
        from minigrid.core.mission import MissionSpace

        given = env.observation_space
        mission: Any = given.get("mission") if isinstance(given, Dict) else None
        if not isinstance(given, Dict) or type(mission) is not MissionSpace:
            name = env.spec.id if env.spec else type(env.unwrapped).__name__
            raise ValueError(
                f"{name}: observation space {type(given).__name__} with mission {type(mission).__name__} is not "
                "supported; expected MiniGrid's Dict with a MissionSpace (BabyAI's missions are free text)"
            )
        symbols = [max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), len(DIR_TO_VEC) - 1]
        high: Any = np.broadcast_to(np.array(symbols, np.uint8), given["image"].shape or ())
        image: Any = Box(0, high, dtype=high.dtype.type)
        words, sentence = mission.ordered_placeholders or [], mission.mission_func
        choices = product(*(range(len(w)) for w in words))
        self._missions = {sentence(*(w[i] for w, i in zip(words, c, strict=True))): np.array(c) for c in choices}
        spaces = {**given.spaces, "image": image}
        del spaces["mission"]
        if words:
            spaces["mission"] = MultiDiscrete([len(w) for w in words])
        self._kept = tuple(Dict(spaces).spaces)  # in the space's own order
        self.observation_space = Dict(spaces)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with the mission as numbers."""
        seen = {key: observation[key] for key in self._kept}
        if "mission" in seen:
            seen["mission"] = self._missions[observation["mission"]]
        return seen
