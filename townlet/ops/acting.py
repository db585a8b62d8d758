"""``act``: encoder, LSTM, head and epsilon-greedy choice of one acting step in one call.

The operator is ``torch.ops.townlet.act``. It has no gradient, and so no backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .checks import check_act
from .packing import PackedActor
from .types import ActOutput


@torch.no_grad()
def act(
    actor: PackedActor,
    obs: Tensor,
    h: Tensor,
    c: Tensor,
    reset: Tensor | None = None,
    legal: Tensor | None = None,
    epsilon: Tensor | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
) -> ActOutput:
    """One acting step for E environments of P members: encoder, LSTM, head, epsilon-greedy choice.

    Ties go to the lowest action. Environment e of member p draws its random numbers as a function of
    ``(seeds[p], step, e)`` alone, from the counter-based generator Philox (Salmon et al. 2011).

    Args:
        actor: the networks, from ``pack_actor``.
        obs: ``[P, E, obs_size]``, the observations, in the dtype of the networks.
        h: ``[P, E, H]``, the hidden state before the observation, which is not written to.
        c: ``[P, E, H]``, the cell state before the observation, which is not written to.
        reset: ``[P, E]`` bool, or None. Where it is set, the state is zeroed before the step.
        legal: ``[P, E, A]`` bool, or None for all legal. A row without a legal action counts as all legal.
        epsilon: ``[P, E]`` float64, the probability of a uniform draw over the legal actions, or None for the greedy
            actions.
        seeds: ``[P]`` int64, given together with ``epsilon``.
        step: how many steps were made before.

    Returns:
        Actions ``[P, E]``, Q-values ``[P, E, A]`` and the state after the step, ``[P, E, H]`` each.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    s = actor.sizes
    if actor.panels is None:
        assert actor.params is not None
        return reference.act(actor.params, obs, h, c, reset, legal, epsilon, seeds, step)
    check_act(s, torch.float32, obs, h, c, reset, legal, epsilon, seeds)
    out = torch.ops.townlet.act(
        obs, h, c, reset, legal, epsilon, seeds, step,
        actor.encoder, s.widths, actor.panels, s.head, s.A, s.dueling,
    )  # fmt: skip
    return ActOutput(*out)


# ---- fake kernel ----


def _fake(
    obs: Tensor,
    h: Tensor,
    c: Tensor,
    reset: Tensor | None,
    legal: Tensor | None,
    epsilon: Tensor | None,
    seeds: Tensor | None,
    step: int,
    encoder: Tensor | None,
    widths: Sequence[int],
    packed: Tensor,
    head: int,
    actions: int,
    dueling: bool,
) -> tuple[Tensor, ...]:
    P, E = obs.shape[:2]
    action, q = obs.new_empty((P, E), dtype=torch.int64), obs.new_empty(P, E, actions)
    return action, q, h.new_empty(h.shape), c.new_empty(c.shape)


torch.library.register_fake("townlet::act", _fake)
