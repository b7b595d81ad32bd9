"""Figures with a machine and a commit beside them: `python -m benchmarks` lists what can be measured.

A benchmark is one module with one idea, in one of the rooms `speed`, `quality`, `robustness` and `recipe`: a
first docstring line that states it, `run(arguments) -> Report`, and `options(parser)` for options of its own.
Room `bench` holds the systems that are measured against each other.
"""
