"""A learner of your own around `td_unroll`: no Trainer, no replay, plain torch.optim.Adam.

Three agents (members) learn from recorded episodes of random actions. An episode shows a cue of +1 or -1 at step 0.
Step 4 is the last; there action 1 pays 1 after a cue of +1, and action 0 pays 1 after a cue of -1. So the values at
step 4 depend on what was seen at step 0. The optimum is known: Q(t) = gamma^(4 - t), but 0 for the wrong action at the
end.
Run it: python examples/own_learner.py (a few seconds on one core).
"""

import torch

from townlet import reference
from townlet.ops import RecurrentQParams, SequenceBatch, TDSpec, pack, td_unroll

P, B, S, D, H, A = 3, 64, 5, 3, 16, 2  # members, sequences, transitions, features, LSTM units, actions
GAMMA = 0.9


def new_network(generator: torch.Generator) -> RecurrentQParams:
    """Fresh weights of P networks, uniform in +-1/sqrt(H). The head is linear and has no dueling streams."""
    shapes = [(P, 4 * H, D), (P, 4 * H, H), (P, 4 * H), (P, A, H), (P, A)]
    w = [torch.empty(s).uniform_(-(H**-0.5), H**-0.5, generator=generator).requires_grad_() for s in shapes]
    return RecurrentQParams(w[0], w[1], w[2], None, None, w[3], w[4])


def observations(cue: torch.Tensor) -> torch.Tensor:
    """The observations ``[P, B, S + 1, D]`` of episodes with these cues, ``[P, B]`` of +-1.

    The three numbers of an observation are the cue (at step 0 only), the time, and 1 at the last step.
    """
    x = torch.zeros(*cue.shape, S + 1, D)
    x[:, :, 0, 0] = cue
    x[..., 1] = torch.arange(S + 1) / S
    x[:, :, S - 1, 2] = 1.0
    return x


def recorded(generator: torch.Generator) -> SequenceBatch:
    """B whole episodes of random actions for each member, as a batch."""
    cue = torch.randint(2, (P, B), generator=generator)
    action = torch.randint(A, (P, B, S), generator=generator)
    x = observations(2.0 * cue - 1.0)
    reward, terminated = torch.zeros(P, B, S), torch.zeros(P, B, S, dtype=torch.bool)
    reward[:, :, -1] = (action[:, :, -1] == cue).float()
    terminated[:, :, -1] = True
    reset = torch.zeros(P, B, S + 1, dtype=torch.bool)
    reset[:, :, 0] = True
    zero = torch.zeros(P, B, H)
    mask = torch.ones(P, B, S, dtype=torch.bool)
    return SequenceBatch(x, x, zero, zero, action, reward, terminated, reset, mask, weight=torch.ones(P, B))


def q_values(network: RecurrentQParams, cue: float) -> torch.Tensor:
    """The Q-values at each step of an episode with this cue, ``[P, S, A]``."""
    x, zero = observations(torch.full((P, 1), cue)), torch.zeros(P, 1, H)
    never = torch.zeros(P, 1, S + 1, dtype=torch.bool)
    return reference.unroll_q(network, x, zero, zero, never, 0, torch.float32)[0][:, 0, :S].detach()


def main() -> None:
    """Train, then compare the Q-values with the optimum."""
    generator = torch.Generator().manual_seed(0)
    online = new_network(generator)
    target = pack(online)
    trained = [w for w in online if w is not None]
    adam = torch.optim.Adam(trained, lr=5e-3)
    spec = TDSpec(gamma=GAMMA, n_step=1, loss="mse")  # a longer return would include random actions
    for update in range(400):
        if update % 20 == 0:
            target = pack(online)
        out = td_unroll(online, target, recorded(generator), spec)
        adam.zero_grad()
        out.loss.sum().backward()  # members share nothing, so the sum trains each on its own loss
        adam.step()
    worst = 0.0
    for cue in (-1.0, 1.0):
        right = int(cue > 0)
        q = q_values(online, cue)
        optimum = torch.tensor([[GAMMA ** (S - 1 - t)] * A for t in range(S)])
        optimum[-1, 1 - right] = 0.0
        worst = max(worst, float((q - optimum).abs().max()))
        print(f"cue {cue:+.0f}: Q at the last step {q[:, -1].tolist()}")
        assert (q[:, -1].argmax(-1) == right).all(), "a member forgot the cue"
    print(f"largest distance of a Q-value from the optimum, {P} members: {worst:.3f}")
    assert worst < 0.15, "the values are not learned"


if __name__ == "__main__":
    main()
