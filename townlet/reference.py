"""Readable twins of the compiled operators, in plain PyTorch and any floating dtype.

They are the oracle of the tests and the fallback where no compiled kernel fits. One step of time is one line of the
loops below; nothing here is fast on purpose. Papers: DRQN (Hausknecht & Stone 2015), R2D2 (Kapturowski et al. 2019),
double Q-learning (van Hasselt et al. 2016), dueling heads (Wang et al. 2016), value rescaling (Pohlen et al. 2018),
Adam (Kingma & Ba 2015).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import _C
from .device import upload
from .params import (
    ACTING_STREAM,
    ActorParams,
    ActOutput,
    RecurrentQParams,
    SequenceBatch,
    SpatialWeights,
    TDOutput,
    TDSpec,
    check_act,
    check_actor,
    check_adam,
    check_epsilon,
    check_params,
    check_spatial,
    check_step,
    check_td,
    check_unroll,
)


def _matmul(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """x [P, N, K] times w [P, M, K] transposed; bfloat16 rounds the operands, products are summed in x's dtype."""
    if dtype == torch.bfloat16:
        x, w = (v + (v.to(dtype).to(v.dtype) - v).detach() for v in (x, w))  # the gradient passes through the rounding
    return x @ w.transpose(1, 2)


def cell(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """One LSTM step for P members: x [P, N, D], h and c [P, N, H] -> (h, c). Gates in the order i, f, g, o."""
    gates = _matmul(x, w_ih, dtype) + _matmul(h, w_hh, dtype) + bias.unsqueeze(1)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_step(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Twin of `townlet.ops.lstm_step`: x [P, E, D], h and c [P, E, H], reset [P, E] bool or None -> (h, c)."""
    check_step(x, h, c, w_ih, w_hh, bias, reset)
    if reset is not None:
        h, c = (v.masked_fill(reset.unsqueeze(-1), 0.0) for v in (h, c))
    return cell(x, h, c, w_ih, w_hh, bias)


def act(
    actor: ActorParams,
    obs: Tensor,
    h: Tensor,
    c: Tensor,
    reset: Tensor | None = None,
    legal: Tensor | None = None,
    epsilon: Tensor | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
) -> ActOutput:
    """Twin of `townlet.ops.act`; the same arguments, results and errors."""
    check_act(check_actor(actor), actor.recurrent.w_ih.dtype, obs, h, c, reset, legal, epsilon, seeds)
    if epsilon is not None and epsilon.device.type == "cpu":
        check_epsilon(epsilon)
    for weight, bias in actor.layers:
        obs = torch.relu(obs @ weight.transpose(1, 2) + bias.unsqueeze(1))
    h, c = lstm_step(obs, h, c, *actor.recurrent[:3], reset)
    q = head(actor.recurrent, h)
    return ActOutput(choose(q, legal, epsilon, seeds, step), q, h, c)


def choose(q: Tensor, legal: Tensor | None, epsilon: Tensor | None, seeds: Tensor | None, step: int) -> Tensor:
    """Epsilon-greedy actions [P, E] for q [P, E, A]; the other arguments as in `act`."""
    allowed = torch.ones_like(q, dtype=torch.bool) if legal is None else legal | ~legal.any(-1, keepdim=True)
    greedy = q.masked_fill(~allowed, float("-inf")).argmax(-1)  # the first of equals
    if epsilon is None or seeds is None:
        return greedy
    P, E = greedy.shape
    keys = seeds.cpu().numpy().astype(np.uint64)
    draws = upload(torch.from_numpy(_C.philox_uniform(keys, ACTING_STREAM, step, 2 * E)), q.device).view(P, E, 2)
    rank = allowed.cumsum(-1)  # how many legal actions up to and including this one
    pick = (draws[..., 1] * rank[..., -1]).long()  # below their number, since draws are below 1
    return torch.where(draws[..., 0] < upload(epsilon, q.device), (rank <= pick.unsqueeze(-1)).sum(-1), greedy)


def lstm_unroll(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `townlet.ops.lstm_unroll`: x [P, B, T, D], reset [P, B, T] bool or None -> (y [P, B, T, H], h_T, c_T)."""
    check_unroll(x, h0, c0, w_ih, w_hh, bias, reset)
    h, c, ys = h0, c0, []
    for t in range(x.shape[2]):
        h, c = lstm_step(x[:, :, t], h, c, w_ih, w_hh, bias, None if reset is None else reset[:, :, t])
        ys.append(h)
    return torch.stack(ys, dim=2), h, c


def head(p: RecurrentQParams, h: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Q-values [P, N, A] of LSTM outputs h [P, N, H]: ReLU layer if any, then the streams, dueling or not."""
    if p.w_fc is not None:
        assert p.b_fc is not None
        h = torch.relu(_matmul(h, p.w_fc, dtype) + p.b_fc.unsqueeze(1))
    q = _matmul(h, p.w_adv, dtype) + p.b_adv.unsqueeze(1)
    if p.w_val is not None:
        assert p.b_val is not None
        q = q - q.mean(-1, keepdim=True) + _matmul(h, p.w_val, dtype) + p.b_val.unsqueeze(1)
    return q


def unroll_q(
    p: RecurrentQParams, x: Tensor, h0: Tensor, c0: Tensor, reset: Tensor, burn_in: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Q [P, B, S+1, A] along a sequence with carried state; no gradient enters the steps before `burn_in`."""
    h, c, qs = h0, c0, []
    for t in range(x.shape[2]):
        if t == burn_in:
            h, c = h.detach(), c.detach()
        keep = ~reset[:, :, t].unsqueeze(-1)
        h, c = cell(x[:, :, t], h.where(keep, 0.0), c.where(keep, 0.0), p.w_ih, p.w_hh, p.bias, dtype)
        qs.append(head(p, h, dtype))
    return torch.stack(qs, dim=2), h, c


def rescale(x: Tensor, eps: float) -> Tensor:
    """h(x) = sign(x)(sqrt(|x| + 1) - 1) + eps x (Pohlen et al. 2018); the identity for eps = 0."""
    return x if eps == 0 else x.sign() * ((x.abs() + 1).sqrt() - 1) + eps * x


def rescale_inverse(x: Tensor, eps: float) -> Tensor:
    """The inverse of `rescale`, in a form that does not cancel in float32."""
    if eps == 0:
        return x
    u = x.abs() + 1 + eps
    z = 2 * u / (1 + (1 + 4 * eps * u).sqrt())
    return x.sign() * (z * z - 1)


def valid_transitions(batch: SequenceBatch) -> Tensor:
    """[P, B, S]: real transitions whose successor is in the sequence, or that terminated."""
    return batch.mask & (batch.terminated | ~batch.reset[:, :, 1:])


def n_step_return(
    value: Tensor, reward: Tensor, terminated: Tensor, valid: Tensor, gamma: Tensor, n_step: int
) -> Tensor:
    """G [P, B, S]: at most n valid transitions from t on, not past a terminated one, then the value found there.

    value [P, B, S+1] in the units of reward, gamma [P, 1, 1]. The end of the sequence, padding and truncation shorten
    n but never drop the bootstrap. G is 0 where t is not valid.
    """
    S = reward.shape[2]
    out = torch.zeros_like(reward)
    for t in range(S):
        going = valid[:, :, t]  # the return still extends
        G = torch.zeros_like(reward[:, :, 0])
        discount = torch.ones_like(G)
        boot = torch.where(going, t, -1)  # index of the bootstrap value, -1: none
        for k in range(t, min(t + n_step, S)):
            going = going & valid[:, :, k]
            G = torch.where(going, G + discount * reward[:, :, k], G)
            discount = torch.where(going, discount * gamma[:, :, 0], discount)
            boot = torch.where(going, torch.where(terminated[:, :, k], -1, k + 1), boot)
            going = going & ~terminated[:, :, k]
        v = value.gather(2, boot.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        out[:, :, t] = G + torch.where(boot >= 0, discount * v, 0.0)
    return out


def pack(params: RecurrentQParams) -> RecurrentQParams:
    """Twin of `townlet.ops.pack`: a detached copy, to be passed as `target`."""
    check_params("", params)
    return RecurrentQParams._make(None if v is None else v.detach().clone() for v in params)


def td_unroll(
    online: RecurrentQParams, target: RecurrentQParams | None, batch: SequenceBatch, spec: TDSpec
) -> TDOutput:
    """Twin of `townlet.ops.td_unroll`; the same arguments, results and errors."""
    size = check_td(online, target, batch, spec)
    L, dtype = spec.burn_in, spec.compute_dtype
    valid = valid_transitions(batch)
    terminated = batch.terminated & valid
    reward = batch.reward.masked_fill(~valid, 0.0)
    action = batch.action.masked_fill(~valid, 0)
    if action.device.type == "cpu" and bool(((action < 0) | (action >= size.A)).any()):
        came = f"{int(action.min())}..{int(action.max())}"
        raise ValueError(f"batch.action holds {came} at valid positions; expected 0 <= action < A = {size.A}")
    bad_member = ((action < 0) | (action >= size.A)).flatten(1).any(1)
    action = action.clamp(0, size.A - 1)
    gamma = spec.gamma.to(reward) if isinstance(spec.gamma, Tensor) else reward.new_full((size.P,), spec.gamma)
    gamma = gamma.view(size.P, 1, 1)

    q, h_final, c_final = unroll_q(
        online, batch.features_online, batch.h0.detach(), batch.c0.detach(), batch.reset, L, dtype
    )
    with torch.no_grad():
        q_target = q.detach()
        if target is not None:
            assert batch.features_target is not None
            q_target, _, _ = unroll_q(target, batch.features_target, batch.h0, batch.c0, batch.reset, L, dtype)
        choose = q.detach() if spec.double_q else q_target
        if batch.legal is not None:
            legal = batch.legal | ~batch.legal.any(-1, keepdim=True)
            choose = choose.masked_fill(~legal, float("-inf"))
        best = choose.argmax(-1, keepdim=True)  # the first of equals
        value = rescale_inverse(q_target.gather(-1, best).squeeze(-1), spec.rescale_eps)
        y = rescale(n_step_return(value, reward, terminated, valid, gamma, spec.n_step), spec.rescale_eps)

    q_taken = q[:, :, :-1].gather(-1, action.unsqueeze(-1)).squeeze(-1)
    trained = valid.clone()
    trained[:, :, :L] = False
    error = torch.where(trained, y - q_taken, 0.0)
    if spec.loss == "mse":
        each = error * error / 2
    else:
        d = spec.huber_delta
        each = torch.where(error.abs() <= d, error * error / 2, d * (error.abs() - d / 2))
    count = trained.sum((1, 2)).clamp(min=1)
    loss = (batch.weight.detach().unsqueeze(-1) * each).sum((1, 2)) / count
    loss = loss.masked_fill(bad_member, float("nan"))

    magnitude = error.detach().abs()
    mean = magnitude.sum(-1) / trained.sum(-1).clamp(min=1)
    priority = spec.eta * magnitude.amax(-1) + (1 - spec.eta) * mean
    q_out = torch.where(valid, q_taken, 0.0)
    return TDOutput(loss, *(v.detach() for v in (error, priority, q_out, h_final, c_final)))


def adam_step(
    weights: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    lr: Tensor,
    clip_norm: Tensor | None,
    betas: tuple[float, float],
    eps: float,
    step: int | Tensor,
    good: Tensor | None = None,
) -> Tensor:
    """Twin of `townlet.ops.adam_step`: writes weights, m and v [P, N]; returns the gradient norms [P].

    It waits for no device: step may be a tensor [] too, and nothing is written where good (a bool []) is False.
    """
    check_adam(weights, m, v, grad, lr, clip_norm, step)
    norm = grad.norm(dim=1)
    go = norm.isfinite().all() if good is None else good & norm.isfinite().all()
    if clip_norm is not None:
        grad = grad * (clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0).unsqueeze(1)
    first = m + (1 - betas[0]) * (grad - m)
    second = betas[1] * v + (1 - betas[1]) * grad * grad
    denominator = (second / (1 - betas[1] ** step)).sqrt() + eps
    moved = weights - (lr / (1 - betas[0] ** step)).unsqueeze(1) * first / denominator
    for held, new in ((weights, moved), (m, first), (v, second)):
        held.copy_(torch.where(go, new, held))
    return norm


def replay_write(
    obs_store: Tensor,
    action_store: Tensor,
    reward_store: Tensor,
    terminated_store: Tensor,
    reset_store: Tensor,
    mask_store: Tensor,
    legal_store: Tensor | None,
    h_store: Tensor,
    c_store: Tensor,
    start: Tensor,
    priority: Tensor,
    count: Tensor,
    closed: Tensor,
    max_priority: Tensor,
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
    reset: Tensor,
    mask: Tensor,
    legal: Tensor | None,
    h: Tensor,
    c: Tensor,
    first: int,
    streams: int,
    steps: int,
    ring: int,
    stride: int,
    seq_len: int,
    closes: bool,
) -> None:
    """Twin of `torch.ops.townlet.replay_write`: `steps` steps to each of `streams` streams from `first` on.

    Stores may lie on a device whose CPU holds `count` and `closed`: what is known on the CPU is decided there, and
    observations are checked where they come from the CPU.
    """
    which = slice(first, first + streams)
    if obs.device.type == "cpu" and not bool(obs.isfinite().all()):
        raise RuntimeError("obs holds NaN or infinity; expected finite numbers")
    if bool(closed[which].any()) and bool((closed[which] & ~reset.reshape(streams, steps)[:, 0].cpu()).any()):
        raise RuntimeError("reset is False in a stream that was closed; expected True there")
    device = obs_store.device
    stream = torch.arange(first, first + streams)
    envs = count.shape[0] // max_priority.shape[0]
    if legal is None and legal_store is not None:
        legal = legal_store.new_ones(streams * steps, legal_store.shape[1])
    stores = (obs_store, action_store, reward_store, terminated_store, reset_store, mask_store, legal_store)
    values = (obs, action, reward, terminated, reset, mask, legal)
    given = [
        (store, upload(value, device).reshape(streams, steps, *store.shape[1:]).to(store.dtype))
        for store, value in zip(stores, values, strict=True)
        if store is not None and value is not None
    ]
    states = [(s, upload(v, device).reshape(streams, steps, -1)) for s, v in ((h_store, h), (c_store, c))]
    last = count[which] + steps - 1
    for i in range(steps):
        step = count[which] + i
        row = upload(stream * ring + step % ring, device)
        for store, value in given:
            store[row] = value[:, i]
        # a new window begins, and the one that began at the step written over is gone
        opening = (step % stride == 0).nonzero().flatten()
        slot = upload((stream * ring + step % ring)[opening] // stride, device)
        for store, value in states:
            store[slot] = value[:, i][upload(opening, device)]
        start.index_fill_(0, slot, -1)  # `start[slot] = -1` would copy the number to a GPU and wait for that
        # a window is complete with its last observation, if the ring still holds its start at the end of this call
        begun = step - seq_len
        complete = ((begun >= 0) & (begun % stride == 0) & (begun > last - ring)).nonzero().flatten()
        slot = upload((stream * ring + begun % ring)[complete] // stride, device)
        start[slot] = upload(begun[complete], device)
        priority[slot] = max_priority[upload(stream[complete] // envs, device)]
    count[which] += steps
    closed[which] = closes


def replay_windows(
    obs_store: Tensor,
    action_store: Tensor,
    reward_store: Tensor,
    terminated_store: Tensor,
    reset_store: Tensor,
    mask_store: Tensor,
    legal_store: Tensor | None,
    h_store: Tensor,
    c_store: Tensor,
    slot: Tensor,
    start: Tensor,
    ring: int,
    stride: int,
    seq_len: int,
) -> tuple[Tensor, ...]:
    """Twin of `torch.ops.townlet.replay_windows`: windows of seq_len transitions, slot and start [P, B]."""
    P, S = slot.shape[0], seq_len
    slots = ring // stride
    envs = obs_store.shape[0] // (P * ring)
    member = torch.arange(P, device=slot.device).unsqueeze(1)
    stream = member * envs + slot // slots
    row = stream.unsqueeze(-1) * ring + (start.unsqueeze(-1) + torch.arange(S + 1, device=slot.device)) % ring
    state, taken = member * envs * slots + slot, row[..., :S]
    return (
        obs_store[row],
        h_store[state],
        c_store[state],
        action_store[taken].long(),
        reward_store[taken],
        terminated_store[taken],
        reset_store[row],
        mask_store[taken],
        mask_store.new_empty(0) if legal_store is None else legal_store[row],
    )


def spatial_encode(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> Tensor:
    """Twin of `townlet.encoders.spatial_encode`: obs [P, N, numbers] -> features [P, N, D]."""
    check_spatial(obs, weights, height, width)
    P, N, _ = obs.shape
    planes = weights.conv0_w.shape[2]
    start = planes * height * width
    # one grouped convolution for all members: member p's maps are group p
    y = obs[..., :start].transpose(0, 1).reshape(N, P * planes, height, width)
    for w, b in (weights[0:2], weights[2:4]):
        y = torch.relu(torch.conv2d(y, w.flatten(0, 1), b.flatten(), padding=1, groups=P))
    inputs = [y.reshape(N, P, -1).transpose(0, 1)]
    inputs += obs[..., start:].split([w.shape[2] for w in weights[6::2]], dim=-1)
    layers = zip(inputs, weights[4::2], weights[5::2], strict=True)
    return torch.cat([torch.relu(torch.baddbmm(b.unsqueeze(1), x, w.transpose(1, 2))) for x, w, b in layers], dim=-1)
