"""The three training phases."""
