"""Bad arguments of `lstm_unroll` and `lstm_step`: a ValueError that names the argument and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import Case, draw, wrong_shapes
from torch import Tensor

from townlet import ops, reference
from townlet.ops import RecurrentQParams

CASE = Case(P=2, B=3, S=5, D=4, H=6, F=7, A=3)


def named_lstm(p: RecurrentQParams) -> dict[str, Tensor]:
    return {"w_ih": p.w_ih, "w_hh": p.w_hh, "bias": p.bias}


def unroll_args() -> dict[str, Tensor]:
    p = draw(CASE)
    b = p.batch
    return {"x": b.features_online, "h0": b.h0, "c0": b.c0, **named_lstm(p.online), "reset": b.reset}


def step_args() -> dict[str, Tensor]:
    p = draw(CASE)
    b = p.batch
    x, reset = b.features_online[:, :, 0], b.reset[:, :, 0]
    return {"x": x, "h": b.h0, "c": b.c0, **named_lstm(p.online), "reset": reset}


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "twin"])
@pytest.mark.parametrize("op", ["lstm_unroll", "lstm_step"])
@pytest.mark.parametrize("wrong", ["shape", "type", "None"])
def test_arguments(module: Any, op: str, wrong: str) -> None:
    f, args = getattr(module, op), unroll_args() if op == "lstm_unroll" else step_args()
    f(**args)
    for name, v in args.items():
        if wrong == "shape":
            # w_ih says what P, D and H are, and x what the rest is: their neighbours do not fit then
            bad = {"w_ih": [v[0], v[:, 1:]], "x": [v[0], v.repeat_interleave(2, 0), v[..., 1:], v[:, :0]]}.get(
                name, wrong_shapes(v)
            )
        elif wrong == "type":
            bad = [v.to(torch.uint8 if v.dtype == torch.bool else torch.float16)]
        else:
            bad = [] if name == "reset" else [None]
        for value in bad:
            with pytest.raises(ValueError, match=rf"\b{name}\b") as caught:
                f(**{**args, name: value})
            assert "expected" in str(caught.value)


def test_empty_time() -> None:
    args = unroll_args()
    with pytest.raises(ValueError, match=r"x has shape \[2, 3, 0, 4\]"):
        ops.lstm_unroll(**{**args, "x": args["x"][:, :, :0], "reset": args["reset"][:, :, :0]})


def test_step_with_weights_half_given() -> None:
    args = step_args()
    with pytest.raises(ValueError, match="bias"):
        ops.lstm_step(**{**args, "bias": None})
