"""Broken twins: the reference with one of its parts replaced, each in the way of a mistake that real projects made.

tests/traps/test_traps.py asserts that the checks of each trap fail for them. `broken` turns a function that returns
replaced parts of `townlet.ops.reference` into a td_unroll that runs with them; a part that no longer exists is an
error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from op_cases import TDUnroll
from torch import Tensor

from townlet.ops import RecurrentQParams, TDOutput, reference

cell, unroll_q = reference.cell, reference.unroll_q
n_step_return, valid_transitions = reference.n_step_return, reference.valid_transitions


def broken(parts: Callable[..., dict[str, Any]]) -> TDUnroll:
    """A td_unroll whose reference runs with `parts(online, target, batch, spec)` in place of its own."""

    def td_unroll(online, target, batch, spec) -> TDOutput:
        with mock.patch.multiple(reference, **parts(online, target, batch, spec)):
            return reference.td_unroll(online, target, batch, spec)

    td_unroll.__name__ = parts.__name__
    return td_unroll


# ---- mutations of the state (unroll_q is called for the online network first, then for the target) ----


def steps(p: RecurrentQParams, x: Tensor, h: Tensor, c: Tensor, reset: Tensor, enter: Callable[..., Any]):
    """Q [P, B, T, A] and states; `enter(t, h, c)` says which state step t starts from."""
    qs = []
    for t in range(x.shape[2]):
        keep = ~reset[:, :, t].unsqueeze(-1)
        h, c = enter(t, h.where(keep, 0.0), c.where(keep, 0.0))
        h, c = cell(x[:, :, t], h, c, p.w_ih, p.w_hh, p.bias)
        qs.append(reference.head(p, h))
    return torch.stack(qs, 2), h, c


def zeros(h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(h), torch.zeros_like(c)


@broken
def state_dropped(online, target, batch, spec):
    def unroll(p, x, h0, c0, reset, burn_in, dtype):
        return steps(p, x, h0, c0, reset, lambda t, h, c: zeros(h, c))

    return {"unroll_q": unroll}


@broken
def state_detached_each_step(online, target, batch, spec):
    def unroll(p, x, h0, c0, reset, burn_in, dtype):
        return steps(p, x, h0, c0, reset, lambda t, h, c: (h.detach(), c.detach()))

    return {"unroll_q": unroll}


@broken
def resets_ignored(online, target, batch, spec):
    def unroll(p, x, h0, c0, reset, burn_in, dtype):
        return unroll_q(p, x, h0, c0, torch.zeros_like(reset), burn_in, dtype)

    return {"unroll_q": unroll}


def for_target(change: Callable[..., Any]) -> TDUnroll:
    """A mutation of the target's unroll alone."""

    def parts(online, target, batch, spec):
        def unroll(p, x, h0, c0, reset, burn_in, dtype):
            if p is not target:
                return unroll_q(p, x, h0, c0, reset, burn_in, dtype)
            return change(online, batch, p, x, h0, c0, reset, burn_in)

        return {"unroll_q": unroll}

    parts.__name__ = change.__name__
    return broken(parts)


@for_target
def target_zero_each_step(online, batch, p, x, h0, c0, reset, L):
    return steps(p, x, h0, c0, reset, lambda t, h, c: zeros(h, c))


@for_target
def target_starts_from_zero(online, batch, p, x, h0, c0, reset, L):
    return unroll_q(p, x, *zeros(h0, c0), reset, L, torch.float32)


@for_target
def target_zero_at_step_1(online, batch, p, x, h0, c0, reset, L):
    return steps(p, x, h0, c0, reset, lambda t, h, c: zeros(h, c) if t == 1 else (h, c))


@for_target
def target_under_online_state(online, batch, p, x, h0, c0, reset, L):
    """Each step of the target starts from what the online network carried."""
    carried = [(h0, c0)]

    def record(t: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if t:
            carried.append((h, c))
        return h, c

    steps(online, batch.features_online, h0, c0, reset, record)
    return steps(p, x, h0, c0, reset, lambda t, h, c: carried[t])


@for_target
def target_under_online_weights(online, batch, p, x, h0, c0, reset, L):
    return unroll_q(online, x, h0, c0, reset, L, torch.float32)


@for_target
def target_reads_online_features(online, batch, p, x, h0, c0, reset, L):
    return unroll_q(p, batch.features_online, h0, c0, reset, L, torch.float32)


@for_target
def target_burnt_in_with_online_weights(online, batch, p, x, h0, c0, reset, L):
    q, h, c = steps(online, x[:, :, :L], h0, c0, reset[:, :, :L], lambda t, h, c: (h, c))
    rest, h, c = steps(p, x[:, :, L:], h, c, reset[:, :, L:], lambda t, h, c: (h, c))
    return torch.cat([q, rest], 2), h, c


@for_target
def target_without_burn_in(online, batch, p, x, h0, c0, reset, L):
    """The target's trace starts from the stored state, as if burn-in had not happened."""
    q, h, c = steps(p, x[:, :, L:], h0, c0, reset[:, :, L:], lambda t, h, c: (h, c))
    return torch.cat([torch.zeros_like(q[:, :, :1]).expand(-1, -1, L, -1), q], 2), h, c


# ---- mutations of the return ----


@broken
def last_step_terminal(online, target, batch, spec):
    def returns(value, reward, terminated, valid, gamma, n):
        ends = terminated.clone()
        ends[:, :, -1] = True
        return n_step_return(value, reward, ends, valid, gamma, n)

    return {"n_step_return": returns}


@broken
def truncation_terminal(online, target, batch, spec):
    """A valid transition followed by an invalid one, or by the window's end, counts as the episode's end."""

    def returns(value, reward, terminated, valid, gamma, n):
        following = torch.cat([valid[:, :, 1:], torch.zeros_like(valid[:, :, :1])], 2)
        return n_step_return(value, reward, terminated | (valid & ~following), valid, gamma, n)

    return {"n_step_return": returns}


@broken
def padding_terminal(online, target, batch, spec):
    """Only inside the window: a transition before a masked one counts as the episode's end."""

    def returns(value, reward, terminated, valid, gamma, n):
        following = torch.cat([valid[:, :, 1:], torch.ones_like(valid[:, :, :1])], 2)
        return n_step_return(value, reward, terminated | (valid & ~following), valid, gamma, n)

    return {"n_step_return": returns}


@broken
def tail_without_bootstrap(online, target, batch, spec):
    """Returns of fewer than n transitions are sums of rewards only."""

    def returns(value, reward, terminated, valid, gamma, n):
        S = reward.shape[2]
        full = n_step_return(value, reward, terminated, valid, gamma, n)
        bare = n_step_return(torch.zeros_like(value), reward, terminated, valid, gamma, n)
        return torch.where(torch.arange(S) + n > S, bare, full)

    return {"n_step_return": returns}


@broken
def tail_dropped(online, target, batch, spec):
    """Transitions that have no n successors are not trained at all."""

    def valid(b):
        S = b.action.shape[2]
        return valid_transitions(b) & (torch.arange(S) + spec.n_step <= S)

    return {"valid_transitions": valid}


@broken
def bootstraps_through_termination(online, target, batch, spec):
    def returns(value, reward, terminated, valid, gamma, n):
        return n_step_return(value, reward, torch.zeros_like(terminated), valid, gamma, n)

    return {"n_step_return": returns}


@broken
def value_one_step_late(online, target, batch, spec):
    def returns(value, reward, terminated, valid, gamma, n):
        return n_step_return(value.roll(1, 2), reward, terminated, valid, gamma, n)

    return {"n_step_return": returns}


@broken
def reward_one_step_late(online, target, batch, spec):
    def returns(value, reward, terminated, valid, gamma, n):
        return n_step_return(value, reward.roll(1, 2), terminated, valid, gamma, n)

    return {"n_step_return": returns}


# ---- mutations of the mask, the gradient and the shapes: wrappers around the whole twin ----


def action_one_step_late(online, target, batch, spec):
    return reference.td_unroll(online, target, batch._replace(action=batch.action.roll(1, 2)), spec)


def mask_ignored(online, target, batch, spec):
    """Every step is trained; garbage is made harmless first, as a trainer with zero padding would have it."""
    plain = batch._replace(
        mask=torch.ones_like(batch.mask),
        reward=batch.reward.nan_to_num(0.0, 0.0, 0.0),
        action=batch.action.clamp(0, online.w_adv.shape[1] - 1),
    )
    return reference.td_unroll(online, target, plain, spec)


def padding_trained_to_zero(online, target, batch, spec):
    """Masked steps are terminal with reward 0 and action 0, and count."""
    ok = valid_transitions(batch)
    plain = batch._replace(
        mask=torch.ones_like(batch.mask),
        terminated=batch.terminated | ~ok,
        reward=batch.reward.masked_fill(~ok, 0.0),
        action=batch.action.masked_fill(~ok, 0),
    )
    return reference.td_unroll(online, target, plain, spec)


def normalised_by_all_steps(online, target, batch, spec):
    out = reference.td_unroll(online, target, batch, spec)
    ok = valid_transitions(batch)
    return out._replace(loss=out.loss * ok.sum((1, 2)).clamp(min=1) / ok[0].numel())


def short_sequences_dropped(online, target, batch, spec):
    whole = valid_transitions(batch).all(-1, keepdim=True)
    return reference.td_unroll(online, target, batch._replace(mask=batch.mask & whole), spec)


@broken
def next_episode_as_successor(online, target, batch, spec):
    """reset[t+1] without termination is not taken as a cut: the next episode's first value is bootstrapped."""
    return {"valid_transitions": lambda b: b.mask}


@broken
def burn_in_gradient_leaks(online, target, batch, spec):
    def unroll(p, x, h0, c0, reset, burn_in, dtype):
        return unroll_q(p, x, h0, c0, reset, 0, dtype)

    return {"unroll_q": unroll}


def gradient_through_y(online, target, batch, spec):
    """The target's gradient is not stopped (one network: the residual gradient)."""
    out = reference.td_unroll(online, target, batch, spec)
    last, _, _ = unroll_q(online, batch.features_online, batch.h0, batch.c0, batch.reset, spec.burn_in, torch.float32)
    return out._replace(loss=out.loss + 0.01 * (last - last.detach())[:, :, -1].sum((1, 2)))


def state_stored_after(online, target, batch, spec):
    """The stored state has already consumed observation 0, which is then consumed again."""
    h, c = cell(batch.features_online[:, :, 0], batch.h0, batch.c0, online.w_ih, online.w_hh, online.bias)
    return reference.td_unroll(online, target, batch._replace(h0=h.detach(), c0=c.detach()), spec)


def squeezed(online, target, batch, spec):
    out = reference.td_unroll(online, target, batch, spec)
    return TDOutput(*(v.squeeze() for v in out))


def global_generator(online, target, batch, spec):
    """Exploration noise drawn from torch's global generator inside the loss."""
    noise = 1e-3 * torch.rand(batch.reward.shape, dtype=batch.reward.dtype)
    return reference.td_unroll(online, target, batch._replace(reward=batch.reward + noise), spec)


def clears_the_state(online, target, batch, spec):
    """The stored state is zeroed in place, as if the update owned it."""
    out = reference.td_unroll(online, target, batch, spec)
    batch.h0.zero_()
    return out


def advances_the_state(online, target, batch, spec):
    """The final state is written over the stored one: a second call starts elsewhere."""
    out = reference.td_unroll(online, target, batch, spec)
    batch.h0.copy_(out.h_final)
    batch.c0.copy_(out.c_final)
    return out
