"""Convolutions written as text. Gymnasium is not imported here, so that settings may check what they are given."""

from __future__ import annotations

import re
from typing import NamedTuple


class Convolution(NamedTuple):
    """A square convolution without padding."""

    channels: int
    kernel: int
    stride: int


def parse_convolutions(text: str) -> tuple[Convolution, ...]:
    """Convolutions, first to last, from text such as '32x8/4,64x3'.

    Args:
        text: channels x kernel, and / stride where the stride is not 1; separated by commas.

    Raises:
        ValueError: a part has another form; it is named.
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
