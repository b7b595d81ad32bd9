"""How the default bundle is made: its data sets, its training, and its figures."""
