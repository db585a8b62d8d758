"""What a run may be told: the settings, their ranges, presets, and the files that they are read from."""
