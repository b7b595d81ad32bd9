"""The steps of `soak`: each disturbs scans or feeds readers in one way, and counts what came of it."""
