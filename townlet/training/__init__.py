"""The training loop: rollout, schedules, population based training, progress, and the end of a run."""
