"""What learns: networks, the population that holds their weights, the replay buffer and the learner."""
