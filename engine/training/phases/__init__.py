"""The three phases of training, one module each, with their helpers."""
