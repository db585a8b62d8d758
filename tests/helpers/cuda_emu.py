"""The CUDA operators on the host shim (tests/emu), with the signatures of their twins; values and gradients."""

from __future__ import annotations

import importlib.util

import torch
from op_cases import Problem
from torch import Tensor

from townlet.ops import RecurrentQParams, TDOutput

_spec = importlib.util.find_spec("townlet._emu")
if _spec is None or _spec.origin is None:
    raise ImportError("townlet._emu is not built: configure with -DTOWNLET_EMU=ON")
torch.ops.load_library(_spec.origin)
emu = torch.ops.townlet_emu


def pack(params: RecurrentQParams, bf16: bool = False) -> Tensor:
    return emu.pack(*(None if v is None else v.detach() for v in params), bf16)


def td_unroll(p: Problem, param_grads: bool = True, feature_grads: bool = True) -> tuple[TDOutput, list[Tensor]]:
    """The outputs, then the gradients of features_online and of the nine weights (empty where there is none)."""
    spec, bf16 = p.spec, p.spec.compute_dtype == torch.bfloat16
    gamma = spec.gamma if isinstance(spec.gamma, Tensor) else torch.full((p.online.w_ih.shape[0],), spec.gamma)
    out = emu.td_unroll(
        *p.online, None if p.target is None else pack(p.target, bf16), *p.batch[:-1], p.batch.legal, gamma,
        spec.n_step, spec.burn_in, spec.double_q, spec.rescale_eps,
        spec.huber_delta if spec.loss == "huber" else 0.0, spec.eta, bf16, param_grads, feature_grads,
    )  # fmt: skip
    return TDOutput(*out[:6]), list(out[6:])


def evaluate(p: Problem, incoming: Tensor) -> dict[str, Tensor]:
    """As op_cases.evaluate: every output by name, and `grad.<name>` under the incoming gradient of each loss."""
    out, (d_features, *d_weights) = td_unroll(p)
    result = dict(out._asdict())
    named = {**dict(zip(RecurrentQParams._fields, d_weights, strict=True)), "features_online": d_features}
    for name, d in named.items():
        if d.numel():
            result[f"grad.{name}"] = d * incoming.view(-1, *[1] * (d.dim() - 1))
    return result


def lstm_unroll(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None, *outer: Tensor
) -> list[Tensor]:
    """y, h_T, c_T; then the gradients of x, h0, c0, w_ih, w_hh, bias for `outer`, those of the three."""
    y, h, c, saved = emu.lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset, True)
    plain = emu.lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset, False)
    assert all(torch.equal(a, b) for a, b in zip(plain, (y, h, c), strict=False))
    return [y, h, c, *emu.lstm_unroll_backward(*outer, saved, x, w_ih, w_hh, reset)]
