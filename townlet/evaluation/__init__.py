"""Greedy play: how well trained agents do, against yardsticks, and whether they use their memory."""
