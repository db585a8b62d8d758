"""`ResetLSTM` in another algorithm: a small PPO, written by hand, on a recall task.

A cue of +1 or -1 is shown at an episode's first step and asked for at its last, after 3 to 6 steps. A policy without
memory is right half of the time. Rollouts of fixed length contain the ends and beginnings of episodes. `ResetLSTM`
takes the `reset` flags and restarts its state inside the sequence, where `torch.nn.LSTM` would need a loop over steps.
PPO is from Schulman et al. 2017, generalised advantages are from Schulman et al. 2016.
Run it: python examples/ppo_reset_lstm.py (about ten seconds on one core).
"""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from townlet.nn import ResetLSTM

ENVS, STEPS, UPDATES, EPOCHS = 64, 32, 24, 4
GAMMA, LAMBDA, CLIP, ENTROPY = 0.95, 0.95, 0.2, 0.01


class RecallWorlds:
    """Many recall tasks at once, as tensors.

    An observation is the cue (0 after the first step), and 1 at the last step. The actions are 0 and 1.
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.cue, self.length, self.tick = torch.zeros(n), torch.zeros(n), torch.zeros(n)
        self.begin(torch.ones(n, dtype=torch.bool))

    def begin(self, which: Tensor) -> None:
        """Start new episodes where ``which`` ``[n]`` is true."""
        cue = 2.0 * torch.randint(2, (self.n,), generator=self.generator) - 1
        length = torch.randint(3, 7, (self.n,), generator=self.generator).float()
        self.cue, self.length = torch.where(which, cue, self.cue), torch.where(which, length, self.length)
        self.tick = torch.where(which, 0.0, self.tick)

    def observe(self) -> Tensor:
        """The observations, ``[n, 2]``."""
        return torch.stack((self.cue * (self.tick == 0), (self.tick == self.length - 1).float()), dim=1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; returns the rewards ``[n]``, and whether the episodes are over ``[n]``. Those begin anew."""
        over = self.tick == self.length - 1
        reward = (over & (action == (self.cue > 0))).float()
        self.tick += 1
        self.begin(over)
        return reward, over


class ActorCritic(nn.Module):
    """A `ResetLSTM` with a policy and a value on top."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = ResetLSTM(2, 32)
        self.policy, self.value = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, obs: Tensor, state: tuple[Tensor, Tensor], reset: Tensor) -> tuple[Categorical, Tensor, tuple]:
        """Run a sequence.

        Args:
            obs: the observations, ``[n, T, 2]``.
            state: h and c before the first step, each ``[n, H]``.
            reset: whether a step is the first of its episode, ``[n, T]``.

        Returns:
            The policy, the values ``[n, T]``, and the state after the last step.
        """
        y, state = self.lstm(obs, state, reset)
        return Categorical(logits=self.policy(y)), self.value(y).squeeze(-1), state


def main() -> None:
    """Train. The share of right answers has to rise from chance to nearly all."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    worlds, net = RecallWorlds(ENVS, torch.Generator().manual_seed(0)), ActorCritic()
    adam = torch.optim.Adam(net.parameters(), lr=5e-3)
    state = (torch.zeros(ENVS, 32), torch.zeros(ENVS, 32))
    first = torch.ones(ENVS, dtype=torch.bool)
    right = []
    for _ in range(UPDATES):
        before, rows = state, []
        with torch.no_grad():
            for _ in range(STEPS):
                obs = worlds.observe()
                policy, value, state = net(obs[:, None], state, first[:, None])
                action = policy.sample()[:, 0]
                reward, over = worlds.step(action)
                rows.append((obs, first, action, policy.log_prob(action[:, None])[:, 0], value[:, 0], reward, over))
                first = over
            last = net(worlds.observe()[:, None], state, first[:, None])[1][:, 0]
        obs, reset, action, log_p, value, reward, over = (torch.stack(v, dim=1) for v in zip(*rows, strict=True))
        right.append(float(reward.sum() / over.sum()))

        advantage, ahead, following = torch.zeros_like(reward), torch.zeros(ENVS), last
        for t in reversed(range(STEPS)):
            going = (~over[:, t]).float()
            delta = reward[:, t] + GAMMA * going * following - value[:, t]
            ahead = delta + GAMMA * LAMBDA * going * ahead
            advantage[:, t], following = ahead, value[:, t]
        aim = advantage + value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        for _ in range(EPOCHS):
            policy, now, _ = net(obs, before, reset)  # the whole rollout in one call, with resets inside
            ratio = (policy.log_prob(action) - log_p).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            loss = -gain + 0.5 * (now - aim).square().mean() - ENTROPY * policy.entropy().mean()
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            adam.step()
    print(f"right answers: {100 * right[0]:.0f}% in the first rollout, {100 * right[-1]:.0f}% in the last (chance 50%)")
    assert right[0] < 0.65, "the task was solved before learning"
    assert right[-1] > 0.9, "the cue was not learned"


if __name__ == "__main__":
    main()
