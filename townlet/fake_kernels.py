"""Fake kernels of `torch.ops.townlet`: the shapes of every operator's outputs, for torch.compile and meta tensors."""

from __future__ import annotations

import torch

from . import _native as _native  # loads the libraries that register torch.ops.townlet
from .autograd import TD_FEATURES, TD_WEIGHTS


@torch.library.register_fake("townlet::pack")
def _pack_fake(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val, bf16):
    if w_ih.device.type == "cuda":  # the weights themselves, one part behind the other
        parts = (w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val)
        return w_ih.new_empty(w_ih.shape[0], sum(w[0].numel() for w in parts if w is not None))
    head = 0 if w_fc is None else int(w_adv.shape[2])
    # The sizes of a network are numbers in a compiled graph; those of a batch may be symbols.
    D, H, A = int(w_ih.shape[2]), int(w_hh.shape[2]), int(w_adv.shape[1])
    return w_ih.new_empty(w_ih.shape[0], torch.ops.townlet.pack_size(D, H, head, A, w_val is not None, bf16))


@torch.library.register_fake("townlet::td_unroll")
def _td_unroll_fake(*args):
    weights, x, h0, action = args[:TD_WEIGHTS], args[TD_FEATURES], args[12], args[14]
    param_grads, feature_grads = args[-2:]
    P, B, S = action.shape
    values = [x.new_empty(shape) for shape in ((P,), (P, B, S), (P, B), (P, B, S), h0.shape, h0.shape)]
    d_x = x.new_empty(x.shape if feature_grads else (0,))
    grads = [x.new_empty(w.shape if param_grads and w is not None else (0,)) for w in weights]
    return (*values, d_x, *grads)


@torch.library.register_fake("townlet::td_unroll_into")
def _td_unroll_into_fake(*args):
    *others, feature_grads, _ = args
    return _td_unroll_fake(*others, False, feature_grads)[:7]


@torch.library.register_fake("townlet::lstm_unroll")
def _lstm_unroll_fake(x, h0, c0, w_ih, w_hh, bias, reset, save):
    P, B, T, D = x.shape
    H = w_hh.shape[2]
    step, rest = torch.ops.townlet.lstm_saved_size(int(D), int(H), x.device.type == "cuda")
    saved = P * B * (T * step + rest)
    return x.new_empty(P, B, T, H), h0.new_empty(h0.shape), c0.new_empty(c0.shape), x.new_empty(saved if save else 0)


@torch.library.register_fake("townlet::lstm_unroll_backward")
def _lstm_unroll_backward_fake(dy, dh, dc, saved, x, w_ih, w_hh, reset):
    P, H4 = w_ih.shape[:2]
    return (*(v.new_empty(v.shape) for v in (x, dh, dc, w_ih, w_hh)), x.new_empty(P, H4))


@torch.library.register_fake("townlet::lstm_step")
def _lstm_step_fake(x, h, c, packed, reset):
    return h.new_empty(h.shape), c.new_empty(c.shape)


@torch.library.register_fake("townlet::pack_encoder")
def _pack_encoder_fake(weights, biases):
    widths = [int(weights[0].shape[2]), *(int(w.shape[1]) for w in weights)]
    return weights[0].new_empty(weights[0].shape[0], torch.ops.townlet.encoder_size(widths))


@torch.library.register_fake("townlet::act")
def _act_fake(obs, h, c, reset, legal, epsilon, seeds, step, encoder, widths, packed, head, actions, dueling):
    P, E = obs.shape[:2]
    return (
        obs.new_empty((P, E), dtype=torch.int64),
        obs.new_empty(P, E, actions),
        h.new_empty(h.shape),
        c.new_empty(c.shape),
    )


@torch.library.register_fake("townlet::adam_step")
def _adam_step_fake(weights, *_):
    return weights.new_empty(weights.shape[0])


@torch.library.register_fake("townlet::replay_write")
def _replay_write_fake(*args):
    return None


@torch.library.register_fake("townlet::replay_windows")
def _replay_windows_fake(obs, action, reward, terminated, reset, mask, legal, h, c, slot, start, ring, stride, seq_len):
    P, B = slot.shape
    S = seq_len
    lead = (P, B, S)
    longer = (P, B, S + 1)
    return (
        obs.new_empty(*longer, obs.shape[1]),
        h.new_empty(P, B, h.shape[1]),
        c.new_empty(P, B, c.shape[1]),
        slot.new_empty(lead),
        reward.new_empty(lead),
        terminated.new_empty(lead),
        reset.new_empty(longer),
        mask.new_empty(lead),
        mask.new_empty(0) if legal is None else legal.new_empty(*longer, legal.shape[1]),
    )
