"""The ground that every other wing may use: files, signals, devices, intervals and text."""
