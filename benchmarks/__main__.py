"""`python -m benchmarks [NAME [--json FILE] ...]`: list the benchmarks, or run one."""

import argparse
import ast
import sys
from importlib import import_module
from pathlib import Path

from gbad_batch.engine.errors import GbadError

from .report import write_json

FOLDER = Path(__file__).parent


def main(words: list[str]) -> int:
    """Return the exit code: 0 done, 1 a threshold failed, 2 no such benchmark, or not on this machine."""
    known = benchmarks()
    if not words or words[0] in ("-h", "--help"):
        print("python -m benchmarks NAME [--json FILE]\n")
        for name, idea in known.items():
            print(f"  {name:<14} {idea}")
        return 0
    name, *rest = words
    name = name.replace("-", "_")
    if name not in known:
        print(f"No benchmark is called {name!r}: choose from {', '.join(known)}.", file=sys.stderr)
        return 2
    return run_one(name, known[name], rest)


def benchmarks() -> dict[str, str]:
    """Name every module beside this one that has a `run`, with the first line of its docstring."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def run_one(name: str, idea: str, words: list[str]) -> int:
    """Run one benchmark, print its table, write its figures; return the exit code."""
    module = import_module(f".{name}", __package__)
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
    sys.exit(main(sys.argv[1:]))
