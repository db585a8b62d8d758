"""The run folder: metrics, checkpoints, events, sessions, and how a run is found and resumed."""
