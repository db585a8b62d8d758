"""Networks in the kernels' own layout: ``pack`` for ``td_unroll`` and ``lstm_step``, ``pack_actor`` for ``act``.

Behind them stand ``torch.ops.townlet.pack`` and ``torch.ops.townlet.pack_encoder``. Their fake kernels need the size of
what they return, and no other place in Python states it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .backend import kernel_fits
from .checks import check_actor, check_params
from .types import ActorParams, ActorSizes, RecurrentQParams


class PackedParams(NamedTuple):
    """A snapshot of P networks in the kernel's own layout, made by ``pack``; changes of the weights do not reach it.

    Attributes:
        params: the weights, for where the reference runs.
        panels: ``[P, N]`` float32, or None where no compiled kernel fits.
        compute_dtype: the ``compute_dtype`` of the ``TDSpec`` that it was packed for.
    """

    params: RecurrentQParams
    panels: Tensor | None
    compute_dtype: torch.dtype


def pack(params: RecurrentQParams, compute_dtype: torch.dtype = torch.float32, *, copy: bool = True) -> PackedParams:
    """Packs P networks once, so that ``td_unroll`` takes them as ``target`` many times (until the next sync).

    Args:
        params: the weights, float32 (or float64, for the reference alone).
        compute_dtype: the ``compute_dtype`` of the ``TDSpec`` that the pack will be used with.
        copy: False keeps the tensors themselves, not copies, for where the reference runs. Whoever writes to them then
            packs anew.

    Returns:
        The packed networks.

    Raises:
        ValueError: a weight does not fit; the message names it.
    """
    if copy:
        kept = reference.pack(params)
    else:
        check_params("", params)
        kept = RecurrentQParams._make(None if v is None else v.detach() for v in params)
    panels = None
    if kernel_fits("pack", params.w_ih):
        panels = torch.ops.townlet.pack(*kept, compute_dtype == torch.bfloat16)
    return PackedParams(kept, panels, compute_dtype)


class PackedActor(NamedTuple):
    """A snapshot of P networks for ``act``, made by ``pack_actor``; changes of the weights do not reach it.

    Attributes:
        sizes: the networks' sizes.
        encoder: the layers, ``[P, N]`` float32, or None without layers.
        panels: the LSTM and the head, ``[P, N]`` float32, or None where no compiled kernel fits.
        params: the parameters where no compiled kernel fits, else None.
    """

    sizes: ActorSizes
    encoder: Tensor | None
    panels: Tensor | None
    params: ActorParams | None


@torch.no_grad()
def pack_actor(params: ActorParams) -> PackedActor:
    """Packs P networks once for many acting steps.

    Args:
        params: the parameters, float32 (or float64, for the reference alone).

    Returns:
        The packed networks.

    Raises:
        ValueError: a parameter does not fit; the message names it.
    """
    sizes = check_actor(params)
    if not kernel_fits("act", params.recurrent.w_ih):
        layers = tuple((w.detach().clone(), b.detach().clone()) for w, b in params.layers)
        return PackedActor(sizes, None, None, ActorParams(layers, reference.pack(params.recurrent)))
    encoder = None
    if params.layers:
        weights, biases = zip(*params.layers, strict=True)
        encoder = torch.ops.townlet.pack_encoder(weights, biases)
    return PackedActor(sizes, encoder, torch.ops.townlet.pack(*params.recurrent, False), None)


# ---- fake kernels ----


def packed_size(params: RecurrentQParams, bf16: bool) -> int:
    """Floats of one member in the panels of ``pack`` on a CPU, as the kernels say.

    The sizes of a network are numbers in a compiled graph; those of a batch may be symbols.
    """
    D, H, A = int(params.w_ih.shape[2]), int(params.w_hh.shape[2]), int(params.w_adv.shape[1])
    head = 0 if params.w_fc is None else int(params.w_adv.shape[2])
    return torch.ops.townlet.pack_size(D, H, head, A, params.w_val is not None, bf16)


def encoder_size(weights: Sequence[Tensor]) -> int:
    """Floats of one member in the panels of ``pack_encoder``, as the kernels say; weights ``[P, out, in]``."""
    return torch.ops.townlet.encoder_size([int(weights[0].shape[2]), *(int(w.shape[1]) for w in weights)])


def _pack_fake(*args: Any) -> Tensor:
    *weights, bf16 = args
    params = RecurrentQParams(*weights)
    P = params.w_ih.shape[0]
    if params.w_ih.device.type == "cuda":  # the weights themselves, one part behind the other
        return params.w_ih.new_empty(P, sum(w[0].numel() for w in params if w is not None))
    return params.w_ih.new_empty(P, packed_size(params, bf16))


torch.library.register_fake("townlet::pack", _pack_fake)


def _pack_encoder_fake(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return weights[0].new_empty(weights[0].shape[0], encoder_size(weights))


torch.library.register_fake("townlet::pack_encoder", _pack_encoder_fake)
