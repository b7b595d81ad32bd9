"""`python -m benchmarks [NAME [--json FILE] ...]`: list the benchmarks, or run one."""

import argparse
import ast
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from gbad_batch.engine.errors import GbadError

from .report import write_json

FOLDER = Path(__file__).parent


def main(words: list[str]) -> int:
    """Return the exit code: 0 done, 1 a bar is missed, 2 unknown, or it cannot run on this machine."""
    known = benchmarks()
    if not words or words[0] in ("-h", "--help"):
        print("python -m benchmarks NAME [--json FILE]\n")
        for benchmark in known.values():
            print(f"  {benchmark.name:<15} {benchmark.idea}")
        return 0
    name, *rest = words
    name = name.replace("-", "_")
    if name not in known:
        print(f"no benchmark is called {name!r}: choose from {', '.join(known)}", file=sys.stderr)
        return 2
    return run_one(known[name], rest)


@dataclass(frozen=True)
class Benchmark:
    """A module with a `run`, found without importing it."""

    name: str
    module: str  # relative to this package: .speed.throughput
    idea: str  # first line of its docstring


def benchmarks() -> dict[str, Benchmark]:
    """Find every module of this package that has a `run`, by its name."""
    known = {}
    for path in sorted(FOLDER.rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            place = path.relative_to(FOLDER).with_suffix("").parts
            idea = (ast.get_docstring(tree) or "").partition("\n")[0]
            known[path.stem] = Benchmark(path.stem, "." + ".".join(place), idea)
    return known


def run_one(benchmark: Benchmark, words: list[str]) -> int:
    """Run one benchmark, print its table, write its figures; return the exit code."""
    name, idea = benchmark.name, benchmark.idea
    module = import_module(benchmark.module, __package__)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=idea)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures by name")
    if hasattr(module, "options"):
        module.options(parser)
    arguments = parser.parse_args(words)
    try:
        report = module.run(arguments)
    except GbadError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    print(report.table())
    if arguments.json is not None:
        write_json(report, name, arguments.json)
    return 0 if report.passed else 1


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the output, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        code = 1
    sys.exit(code)
