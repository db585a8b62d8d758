"""Where in a flat observation an image lies, and what its numbers mean.

An image is a Box of three axes. Its channels are the shorter of the first and the last axis (the last when they are
equal): [H, W, C] as in Gymnasium and MiniGrid, or [C, H, W] as stacked frames come. Integers with at most
``MOST_SYMBOLS`` values in each channel are symbols (MiniGrid: object, colour, state), which have no order: a plane for
each value. Other numbers are brightness, scaled to 0..1 by the space's bounds where those are finite: integers in the
row already, others here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space

from .convolutions import Convolution, parse_convolutions
from .spaces import MOST_SYMBOLS, ObservationRows, Part

SMALLEST_SIDE = 5
"""Pixels below which a Box of three axes is a list of numbers to ``network: auto``, not an image."""
SMALL_SIDE = 20
"""Pixels below which an image gets the smaller convolutions."""


@dataclass(frozen=True)
class ImageLayout:
    """An image inside a flat observation, as numbers in the order of its axes."""

    name: str  # where it was found: 'observation', "observation['image']"
    start: int  # of the first number in the flat observation
    height: int
    width: int
    channels: int
    channels_first: bool
    symbols: tuple[int, ...] | None  # values 0..n-1 of each channel, None for brightness
    low: float  # brightness x of the row becomes (x - low) * scale
    scale: float

    @property
    def size(self) -> int:
        """Numbers in the observation."""
        return self.height * self.width * self.channels

    @property
    def planes(self) -> int:
        """Maps that a convolution sees."""
        return self.channels if self.symbols is None else sum(self.symbols)


def default_convolutions(image: ImageLayout) -> tuple[Convolution, ...]:
    """Those of DQN (Mnih et al. 2015), or two of 3x3 where an image is too small for them."""
    small = min(image.height, image.width) < SMALL_SIDE
    return parse_convolutions("16x3,32x3" if small else "32x8/4,64x4/2,64x3")


def find_image(space: Space[Any], name: str, *, least: int = 1) -> ImageLayout | None:
    """The one image in an observation space with both sides at least ``least``; None where there is none.

    Args:
        space: of one environment's observation, laid out as `ObservationRows` does.
        name: the world's, for errors.

    Raises:
        ValueError: there are several images; they are named.
    """
    images = (_layout(part) for part in ObservationRows(space, name).parts if part.kind == "image")
    found = [image for image in images if min(image.height, image.width) >= least]
    if len(found) > 1:
        names = ", ".join(i.name for i in found)
        raise ValueError(f"{name}: {len(found)} images ({names}); expected one for network=conv; network=mlp takes any")
    return found[0] if found else None


def _layout(part: Part) -> ImageLayout:
    box = part.space
    assert isinstance(box, Box)
    first = box.shape[0] < box.shape[2]
    height, width, channels = (*box.shape[1:], box.shape[0]) if first else box.shape
    low, high = float(box.low.min()), float(box.high.max())
    most = box.high.max(axis=(1, 2) if first else (0, 1))
    symbolic = np.issubdtype(box.dtype, np.integer) and low >= 0 and most.max() < MOST_SYMBOLS
    to_scale = box.is_bounded() and high > low and not part.scaled
    return ImageLayout(
        name=part.name,
        start=part.start,
        height=int(height),
        width=int(width),
        channels=int(channels),
        channels_first=first,
        symbols=tuple(int(m) + 1 for m in most) if symbolic else None,
        low=low if to_scale else 0.0,
        scale=1.0 / (high - low) if to_scale else 1.0,
    )
