# What this project calls of CuPy 14, which cuML brings, for the type checker.
from . import cuda as cuda
