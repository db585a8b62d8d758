"""Readable twins of the compiled operators, in plain PyTorch and any floating dtype.

They are the oracle of the tests, and what runs where no compiled kernel fits. One step of time is one turn of the loops
below, and nothing here is fast on purpose. The papers are: DRQN (Hausknecht & Stone 2015), R2D2 (Kapturowski et al.
2019), double Q-learning (van Hasselt et al. 2016), dueling heads (Wang et al. 2016), value rescaling (Pohlen et al.
2018) and Adam (Kingma & Ba 2015). The symbols are those of ``townlet.ops.types``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _C
from ..support.devices import upload
from .checks import (
    check_act,
    check_actor,
    check_adam_step,
    check_epsilon,
    check_lstm_step,
    check_lstm_unroll,
    check_params,
    check_spatial_encode,
    check_td_unroll,
)
from .types import (
    ACTING_STREAM,
    ActorParams,
    ActOutput,
    RecurrentQParams,
    ReplaySteps,
    ReplayStores,
    ReplayTables,
    SequenceBatch,
    SpatialWeights,
    TDOutput,
    TDSpec,
)


def _matmul(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """x ``[P, N, K]`` times w ``[P, M, K]`` transposed; bfloat16 rounds the operands, and sums keep x's dtype."""
    if dtype == torch.bfloat16:
        x, w = (v + (v.to(dtype).to(v.dtype) - v).detach() for v in (x, w))  # the gradient passes through the rounding
    return x @ w.transpose(1, 2)


def cell(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """One LSTM step for N rows of each of P members (Hochreiter & Schmidhuber 1997).

    Args:
        x: ``[P, N, D]``, the inputs.
        h: ``[P, N, H]``, the hidden state before the step.
        c: ``[P, N, H]``, the cell state before the step.
        w_ih: ``[P, 4H, D]``, with the gates in the order i, f, g, o.
        w_hh: ``[P, 4H, H]``.
        bias: ``[P, 4H]``.
        dtype: ``torch.bfloat16`` rounds the operands of the products.

    Returns:
        h and c after the step, ``[P, N, H]`` each.
    """
    gates = _matmul(x, w_ih, dtype) + _matmul(h, w_hh, dtype) + bias.unsqueeze(1)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_step(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The twin of ``townlet.ops.lstm_step``, which says what the arguments are and which errors there are.

    Args:
        x: ``[P, E, D]``.
        h: ``[P, E, H]``.
        c: ``[P, E, H]``.
        w_ih: ``[P, 4H, D]``.
        w_hh: ``[P, 4H, H]``.
        bias: ``[P, 4H]``.
        reset: ``[P, E]`` bool, or None.

    Returns:
        h and c after the step, ``[P, E, H]`` each.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_lstm_step(x, h, c, w_ih, w_hh, bias, reset)
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
    """The twin of ``townlet.ops.act``, which says what the arguments are and which errors there are.

    Args:
        actor: the networks' parameters, not packed.
        obs: ``[P, E, obs_size]``.
        h: ``[P, E, H]``.
        c: ``[P, E, H]``.
        reset: ``[P, E]`` bool, or None.
        legal: ``[P, E, A]`` bool, or None.
        epsilon: ``[P, E]`` float64, or None. Values on an accelerator are not checked, since that would wait for it.
        seeds: ``[P]`` int64, or None.
        step: how many steps were made before.

    Returns:
        The actions, the Q-values and the state after the step.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_act(check_actor(actor), actor.recurrent.w_ih.dtype, obs, h, c, reset, legal, epsilon, seeds)
    if epsilon is not None and epsilon.device.type == "cpu":
        check_epsilon(epsilon)
    for weight, bias in actor.layers:
        obs = torch.relu(obs @ weight.transpose(1, 2) + bias.unsqueeze(1))
    h, c = lstm_step(obs, h, c, *actor.recurrent[:3], reset)
    q = head(actor.recurrent, h)
    return ActOutput(choose(q, legal, epsilon, seeds, step), q, h, c)


def choose(q: Tensor, legal: Tensor | None, epsilon: Tensor | None, seeds: Tensor | None, step: int) -> Tensor:
    """Epsilon-greedy actions over the legal ones; ties go to the lowest action.

    Args:
        q: ``[P, E, A]``, the Q-values.
        legal: ``[P, E, A]`` bool, or None. A row without a legal action counts as all legal.
        epsilon: ``[P, E]`` float64, the probability of a uniform draw, or None for the greedy actions.
        seeds: ``[P]`` int64, given together with ``epsilon``.
        step: how many steps were made before; the draws depend on it.

    Returns:
        ``[P, E]`` int64.
    """
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
    """The twin of ``townlet.ops.lstm_unroll``, which says what the arguments are and which errors there are.

    Args:
        x: ``[P, B, T, D]``.
        h0: ``[P, B, H]``.
        c0: ``[P, B, H]``.
        w_ih: ``[P, 4H, D]``.
        w_hh: ``[P, 4H, H]``.
        bias: ``[P, 4H]``.
        reset: ``[P, B, T]`` bool, or None.

    Returns:
        The outputs ``[P, B, T, H]``, and h and c after the last step, ``[P, B, H]`` each.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset)
    h, c, ys = h0, c0, []
    for t in range(x.shape[2]):
        h, c = lstm_step(x[:, :, t], h, c, w_ih, w_hh, bias, None if reset is None else reset[:, :, t])
        ys.append(h)
    return torch.stack(ys, dim=2), h, c


def head(p: RecurrentQParams, h: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The head's Q-values: a ReLU layer where there is one, then one stream, or two that duel (Wang et al. 2016).

    Args:
        p: the weights.
        h: ``[P, N, H]``, outputs of the LSTM.
        dtype: ``torch.bfloat16`` rounds the operands of the products.

    Returns:
        ``[P, N, A]``. A dueling head subtracts the mean over all A actions, legal or not.
    """
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
    """Q-values along a sequence with carried state; no gradient enters the steps before ``burn_in``.

    Args:
        p: the weights.
        x: ``[P, B, S+1, D]``, the features.
        h0: ``[P, B, H]``.
        c0: ``[P, B, H]``.
        reset: ``[P, B, S+1]`` bool, where the state is zeroed before the step.
        burn_in: the step whose incoming state is a constant.
        dtype: ``torch.bfloat16`` rounds the operands of the products.

    Returns:
        Q ``[P, B, S+1, A]``, and h and c after observation S, ``[P, B, H]`` each.
    """
    h, c, qs = h0, c0, []
    for t in range(x.shape[2]):
        if t == burn_in:
            h, c = h.detach(), c.detach()
        keep = ~reset[:, :, t].unsqueeze(-1)
        h, c = cell(x[:, :, t], h.where(keep, 0.0), c.where(keep, 0.0), p.w_ih, p.w_hh, p.bias, dtype)
        qs.append(head(p, h, dtype))
    return torch.stack(qs, dim=2), h, c


def rescale(x: Tensor, eps: float) -> Tensor:
    """The value rescaling h(x) = sign(x)(sqrt(abs(x) + 1) - 1) + eps x (Pohlen et al. 2018).

    Args:
        x: values of any shape.
        eps: 0 makes it the identity.

    Returns:
        h(x), of x's shape.
    """
    return x if eps == 0 else x.sign() * ((x.abs() + 1).sqrt() - 1) + eps * x


def rescale_inverse(x: Tensor, eps: float) -> Tensor:
    """The inverse of ``rescale``, in a form that does not cancel in float32.

    Args:
        x: rescaled values of any shape.
        eps: as in ``rescale``.

    Returns:
        The values that ``rescale`` takes to x, of x's shape.
    """
    if eps == 0:
        return x
    u = x.abs() + 1 + eps
    z = 2 * u / (1 + (1 + 4 * eps * u).sqrt())
    return x.sign() * (z * z - 1)


def valid_transitions(batch: SequenceBatch) -> Tensor:
    """Which transitions count: real ones whose successor is in the sequence, or that terminated.

    Args:
        batch: the sequences; mask, terminated and reset are read.

    Returns:
        ``[P, B, S]`` bool.
    """
    return batch.mask & (batch.terminated | ~batch.reset[:, :, 1:])


def n_step_return(
    value: Tensor, reward: Tensor, terminated: Tensor, valid: Tensor, gamma: Tensor, n_step: int
) -> Tensor:
    """n-step returns: at most n valid transitions from t on, none after a terminated one, then the value found there.

    The end of the sequence, padding and truncation shorten n, but they never drop the bootstrap.

    Args:
        value: ``[P, B, S+1]``, the observations' values in the units of the reward.
        reward: ``[P, B, S]``.
        terminated: ``[P, B, S]`` bool.
        valid: ``[P, B, S]`` bool, from ``valid_transitions``.
        gamma: ``[P, 1, 1]``, the discount per transition.
        n_step: n.

    Returns:
        G ``[P, B, S]``; 0 where t is not valid.
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
    """The twin of ``townlet.ops.pack``: a detached copy, which ``td_unroll`` takes as ``target``.

    Args:
        params: the weights.

    Returns:
        The same numbers in tensors of their own.

    Raises:
        ValueError: a weight does not fit; the message names it.
    """
    check_params("", params)
    return RecurrentQParams._make(None if v is None else v.detach().clone() for v in params)


def td_unroll(
    online: RecurrentQParams, target: RecurrentQParams | None, batch: SequenceBatch, spec: TDSpec
) -> TDOutput:
    """The twin of ``townlet.ops.td_unroll``, which says what the arguments are and which errors there are.

    Args:
        online: the weights that are trained.
        target: the weights that bootstrap; None lets the online network's own detached values do so.
        batch: the sequences.
        spec: how target and loss are formed; ``spec.backend`` is not read.

    Returns:
        Loss, TD errors, priorities, Q-values and final states.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    size = check_td_unroll(online, target, batch, spec)
    L, dtype = spec.burn_in, spec.compute_dtype
    valid = valid_transitions(batch)
    terminated = batch.terminated & valid
    reward = batch.reward.masked_fill(~valid, 0.0)
    action = batch.action.masked_fill(~valid, 0)
    if action.device.type == "cpu" and bool(((action < 0) | (action >= size.A)).any()):
        where = ((action < 0) | (action >= size.A)).nonzero()[0].tolist()
        came = f"{int(action[tuple(where)])} at {where}"
        raise ValueError(f"batch.action is {came}, a valid position; expected 0 <= action < A = {size.A}")
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
    """The twin of ``townlet.ops.adam_step``, which says what the arguments are and which errors there are.

    It waits for no device. Nothing is written where ``good`` is False or a norm is not finite.

    Args:
        weights: ``[P, N]``, overwritten.
        m: ``[P, N]``, overwritten.
        v: ``[P, N]``, overwritten.
        grad: ``[P, N]``.
        lr: ``[P]``.
        clip_norm: ``[P]``, or None for no clipping.
        betas: the decay rates of m and v.
        eps: the offset of the denominator.
        step: the number of this step, from 1 on, as an int or as a tensor ``[]`` on the weights' device.
        good: a bool tensor ``[]``, or None for True.

    Returns:
        The norms of the gradients before clipping, ``[P]``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_adam_step(weights, m, v, grad, lr, clip_norm, step)
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
    stores: ReplayStores,
    tables: ReplayTables,
    steps: ReplaySteps,
    *,
    first: int,
    streams: int,
    n: int,
    ring: int,
    stride: int,
    seq_len: int,
    closes: bool,
) -> None:
    """The twin of ``townlet.ops.replay.replay_write``: n steps to each of ``streams`` streams from ``first`` on.

    The stores may lie on a device whose CPU holds ``tables.written`` and ``tables.closed``: what is known on the CPU is
    decided there, and observations are checked where they come from the CPU.

    Args:
        stores: the buffer's rings, overwritten.
        tables: what the buffer knows of its streams and windows, overwritten but for ``max_priority``.
        steps: what is written.
        first: the first stream.
        streams: how many streams.
        n: how many steps each stream gets.
        ring: the length of a stream's ring.
        stride: the steps between the starts of windows.
        seq_len: the transitions in a window.
        closes: whether the next step of these streams must open an episode.

    Raises:
        ValueError: an observation is not finite, or a closed stream goes on without a reset. Nothing has been written
            then.
    """
    which = slice(first, first + streams)
    if steps.obs.device.type == "cpu" and not bool(steps.obs.isfinite().all()):
        where = (~steps.obs.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"obs holds NaN or infinity, first at {where}; expected finite numbers")
    closed, count = tables.closed, tables.written
    envs = count.shape[0] // tables.max_priority.shape[0]
    if bool(closed[which].any()):
        unopened = (closed[which] & ~steps.reset.reshape(streams, n)[:, 0].cpu()).nonzero().flatten().tolist()
        if unopened:
            member, env = divmod(first + unopened[0], envs)
            raise ValueError(
                f"reset is False in a stream whose last step ended an added episode, that of member {member} and "
                f"environment {env}; expected True there"
            )
    device = stores.obs.device
    stream = torch.arange(first, first + streams)
    if steps.legal is None and stores.legal is not None:
        steps = steps._replace(legal=stores.legal.new_ones(streams * n, stores.legal.shape[1]))
    given = [
        (store, upload(value, device).reshape(streams, n, *store.shape[1:]).to(store.dtype))
        for store, value in zip(stores[:-2], steps[:-2], strict=True)
        if store is not None and value is not None
    ]
    states = [
        (store, upload(value, device).reshape(streams, n, -1))
        for store, value in ((stores.h, steps.h), (stores.c, steps.c))
    ]
    last = count[which] + n - 1
    for i in range(n):
        step = count[which] + i
        row = upload(stream * ring + step % ring, device)
        for store, value in given:
            store[row] = value[:, i]
        # a new window begins, and the one that began at the step written over is gone
        opening = (step % stride == 0).nonzero().flatten()
        slot = upload((stream * ring + step % ring)[opening] // stride, device)
        for store, value in states:
            store[slot] = value[:, i][upload(opening, device)]
        tables.start.index_fill_(0, slot, -1)  # `start[slot] = -1` would copy the number to a GPU and wait for that
        # a window is complete with its last observation, if the ring still holds its start at the end of this call
        begun = step - seq_len
        complete = ((begun >= 0) & (begun % stride == 0) & (begun > last - ring)).nonzero().flatten()
        slot = upload((stream * ring + begun % ring)[complete] // stride, device)
        tables.start[slot] = upload(begun[complete], device)
        tables.priority[slot] = tables.max_priority[upload(stream[complete] // envs, device)]
    count[which] += n
    closed[which] = closes


def replay_windows(
    stores: ReplayStores, slot: Tensor, start: Tensor, *, ring: int, stride: int, seq_len: int
) -> ReplaySteps:
    """The twin of ``townlet.ops.replay.replay_windows``: windows read out of the rings.

    Args:
        stores: the buffer's rings.
        slot: ``[P, B]`` int64, the slot of each window among its member's.
        start: ``[P, B]`` int64, the step at which each window starts.
        ring: the length of a stream's ring.
        stride: the steps between the starts of windows.
        seq_len: S, the transitions in a window.

    Returns:
        Fields ``[P, B, S, ...]``; obs, reset and legal have S + 1 entries, and h and c ``[P, B, H]`` are the states
        before the first observation. ``legal`` is None where the stores keep none.
    """
    P, S = slot.shape[0], seq_len
    slots = ring // stride
    envs = stores.obs.shape[0] // (P * ring)
    member = torch.arange(P, device=slot.device).unsqueeze(1)
    stream = member * envs + slot // slots
    row = stream.unsqueeze(-1) * ring + (start.unsqueeze(-1) + torch.arange(S + 1, device=slot.device)) % ring
    state, taken = member * envs * slots + slot, row[..., :S]
    return ReplaySteps(
        obs=stores.obs[row],
        action=stores.action[taken].long(),
        reward=stores.reward[taken],
        terminated=stores.terminated[taken],
        reset=stores.reset[row],
        mask=stores.mask[taken],
        legal=None if stores.legal is None else stores.legal[row],
        h=stores.h[state],
        c=stores.c[state],
    )


def spatial_encode(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> Tensor:
    """The twin of ``townlet.ops.spatial.spatial_encode``, which says what the arguments are and which errors there are.

    Args:
        obs: ``[P, N, numbers]``.
        weights: the encoders' weights.
        height: rows of a map.
        width: columns of a map.

    Returns:
        Features ``[P, N, D]``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_spatial_encode(obs, weights, height, width)
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
