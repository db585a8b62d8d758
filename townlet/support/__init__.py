"""The ground: files, signals, devices, intervals and text. Every other wing may use these."""
