"""The settings of a run: their ranges, their presets, and the files that they are read from."""
