"""Where in a flat observation an image lies, and what its numbers mean.

An image is a Box of three axes. Its channels are the shorter of the first and the last axis, and the last where they
are equal: ``[H, W, C]`` as in Gymnasium and MiniGrid, or ``[C, H, W]`` as stacked frames come.

Integers with at most ``MOST_SYMBOLS`` values in each channel are symbols (object, colour and state in MiniGrid). They
have no order, so each value gets a plane. Other numbers are brightness, which is scaled to 0..1 by the space's bounds
where those are finite: integers are scaled in the row already, others here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space

from ..support.convolutions import Convolution, parse_convolutions
from .spaces import MOST_SYMBOLS, ObservationRows, Part

SMALLEST_SIDE = 5
"""The side in pixels below which ``network: auto`` takes a Box of three axes for a list of numbers, not an image."""
SMALL_SIDE = 20
"""The side in pixels below which an image gets the smaller convolutions."""


@dataclass(frozen=True)
class ImageLayout:
    """An image inside a flat observation, as numbers in the order of its axes."""

    name: str  # where it was found, such as 'observation' or "observation['image']"
    start: int  # the place of its first number in the flat observation
    height: int
    width: int
    channels: int
    channels_first: bool
    symbols: tuple[int, ...] | None  # n of each channel, whose values are 0..n-1; None for brightness
    low: float  # a brightness x of the row becomes (x - low) * scale
    scale: float  # see `low`

    @property
    def size(self) -> int:
        """The image's numbers in the observation."""
        return self.height * self.width * self.channels

    @property
    def planes(self) -> int:
        """The maps that a convolution sees."""
        return self.channels if self.symbols is None else sum(self.symbols)


def default_convolutions(image: ImageLayout) -> tuple[Convolution, ...]:
    """The convolutions of DQN (Mnih et al. 2015), or two of 3x3 where an image is too small for those."""
    small = min(image.height, image.width) < SMALL_SIDE
    return parse_convolutions("16x3,32x3" if small else "32x8/4,64x4/2,64x3")


def find_image(space: Space[Any], name: str, *, least: int = 1) -> ImageLayout | None:
    """The one image in an observation space.

    Args:
        space: the space of one environment's observation, laid out as `ObservationRows` does it.
        name: the world's id, for errors.
        least: the smallest side in pixels that an image may have.

    Returns:
        The image; None where there is none.

    Raises:
        ValueError: there are several images; the message names them.
    """
    images = (_layout(part) for part in ObservationRows(space, name).parts if part.kind == "image")
    found = [image for image in images if min(image.height, image.width) >= least]
    if len(found) > 1:
        names = ", ".join(i.name for i in found)
        raise ValueError(f"{name}: observation holds {len(found)} images ({names}); expected one, or network=mlp")
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
