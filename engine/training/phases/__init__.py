"""The three phases of training, one module each, and what only they use."""
