"""Operations of our own, each with a plain reference."""

if __name__ != "gbad_batch.kernels":
    raise ImportError(f"import this package as gbad_batch.kernels, not as {__name__}")
