"""Types of the pybind11 module (csrc/python/)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def measure_peak(bf16: bool, seconds: float) -> tuple[str, float]: ...
def philox_uniform(keys: NDArray[np.uint64], stream: int, counter: int, n: int) -> NDArray[np.float64]: ...
def philox_block(c0: int, c1: int, c2: int, c3: int, key: int) -> tuple[int, int, int, int]: ...
def town_buildings() -> list[dict[str, Any]]: ...
def town_losses() -> dict[str, Any]: ...

class Town:
    def __init__(
        self,
        *,
        num_envs: int,
        hamlet: bool,
        size: int,
        random_layout: bool,
        random_hour: bool,
        max_steps: int,
        start_cents: int,
        depletion: Sequence[float],
        temporal: bool,
        partial: bool,
        kinds: bool,
        radius: int,
        knots: int,
        wellbeing: bool,
        random_start: float,
    ) -> None: ...
    @property
    def num_envs(self) -> int: ...
    @property
    def obs_size(self) -> int: ...
    @property
    def kinds(self) -> list[int]: ...
    def seed(self, keys: Sequence[int]) -> None: ...
    def reset(self, mask: NDArray[np.bool_]) -> None: ...
    def step(
        self,
        actions: NDArray[np.int64],
        obs: NDArray[np.float32],
        reward: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        legal: NDArray[np.bool_],
        survival: NDArray[np.int32],
    ) -> None: ...
    def observe(self, obs: NDArray[np.float32], legal: NDArray[np.bool_]) -> None: ...
    def get_state(self) -> dict[str, NDArray[Any]]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
