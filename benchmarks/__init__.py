"""Figures with a machine and a commit beside them: `python -m benchmarks` lists what can be measured.

A benchmark is one module with one idea: a first docstring line that says it, `run(arguments) -> Report`, and
`options(parser)` where it takes options of its own.
"""
