"""Interim: reference only, until the compiled operators land (same names and signatures)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import reference
from .params import RecurrentQParams, SequenceBatch, TDOutput, TDSpec

__all__ = ["PackedParams", "RecurrentQParams", "SequenceBatch", "TDOutput", "TDSpec", "lstm_step", "lstm_unroll", "pack", "td_unroll"]


class PackedParams(NamedTuple):
    params: RecurrentQParams


def pack(params: RecurrentQParams) -> PackedParams:
    return PackedParams(RecurrentQParams(*(None if v is None else v.detach().clone() for v in params)))


def td_unroll(
    online: RecurrentQParams, target: RecurrentQParams | PackedParams | None, batch: SequenceBatch, spec: TDSpec
) -> TDOutput:
    if isinstance(target, PackedParams):
        target = target.params
    return reference.td_unroll(online, target, batch, spec)


def lstm_step(x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return reference.lstm_step(x, h, c, w_ih, w_hh, bias, reset)


def lstm_unroll(x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return reference.lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset)
