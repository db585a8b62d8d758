"""Pages of one self-contained file: no script, no request to anywhere, the same look in the light and in the dark."""
