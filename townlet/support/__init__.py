"""The ground that every other wing may use: files, signals, devices, intervals, text and the ids of worlds."""
