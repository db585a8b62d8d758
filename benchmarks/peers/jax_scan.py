"""Peer (f): the update in JAX, a jitted lax.scan over time with value_and_grad.

It runs on one thread. jax reads the flags below when it is first imported, and the harness pins the process.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import torch

from townlet.bench.peers import Inputs, Update
from townlet.bench.problem import Problem


def _unroll(params, x, h, c):
    """Q-values ``[S + 1, B, A]`` from x ``[S + 1, B, D]``. The inputs of all steps are projected in one product."""
    w_ih, w_hh, bias, w_q, b_q = params
    projected = jnp.einsum("tbd,gd->tbg", x, w_ih) + bias

    def step(state, gates_x):
        h, c = state
        i, f, g, o = jnp.split(gates_x + h @ w_hh.T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    _, y = jax.lax.scan(step, (h, c), projected)
    return y @ w_q.T + b_q


def _loss(online, target, x, x_target, h, c, action, reward, going, gamma):
    q = _unroll(online, x, h, c)
    q_target = jax.lax.stop_gradient(_unroll(target, x_target, h, c))
    best = jnp.argmax(jax.lax.stop_gradient(q[1:]), axis=-1, keepdims=True)
    y = reward + gamma * going * jnp.take_along_axis(q_target[1:], best, axis=-1)[..., 0]
    error = jnp.abs(y - jnp.take_along_axis(q[:-1], action[..., None], axis=-1)[..., 0])
    return jnp.where(error <= 1.0, error * error / 2, error - 0.5).mean()


_step = jax.jit(jax.value_and_grad(_loss))


def update(problem: Problem) -> Update:
    """The update of a problem of one member. The call waits for the results."""
    i = Inputs(problem)

    def network(params):
        return [jnp.asarray(w[0].detach().numpy()) for w in params if w is not None]

    data = [i.online, i.target, i.h[0], i.c[0], i.action, i.reward, i.going]
    arguments = [network(problem.online), network(problem.target), *(jnp.asarray(v.numpy()) for v in data), i.gamma]

    def run():
        loss, gradients = jax.block_until_ready(_step(*arguments))
        return [torch.from_dlpack(v).unsqueeze(0) for v in (loss, *gradients)]  # without a copy

    return run
