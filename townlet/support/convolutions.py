"""Convolutions written as text. This module imports no Gymnasium, so that the settings can check them cheaply."""

from __future__ import annotations

import re
from typing import NamedTuple


class Convolution(NamedTuple):
    """A square convolution without padding."""

    channels: int
    kernel: int
    stride: int


def parse_convolutions(text: str) -> tuple[Convolution, ...]:
    """Read convolutions from text such as '32x8/4,64x3'.

    Args:
        text: CHANNELSxKERNEL or CHANNELSxKERNEL/STRIDE for each convolution, separated by commas. The stride is 1
            where it is not given.

    Returns:
        The convolutions, first to last.

    Raises:
        ValueError: a part has another form; the message names it.
    """
    layers = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:/([1-9]\d*))?", part.strip())
        if match is None:
            raise ValueError(
                f"conv is {text!r}, in which {part!r} is no convolution; expected CHANNELSxKERNEL or "
                "CHANNELSxKERNEL/STRIDE, separated by commas"
            )
        layers.append(Convolution(*(int(n or 1) for n in match.groups())))
    return tuple(layers)
