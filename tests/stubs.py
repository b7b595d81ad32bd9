"""The types that are kept by hand in .typing, held to the packages that they speak of."""

import ast
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

TYPING = Path(__file__).parents[1] / ".typing"


def unknown_names(module: str) -> list[str]:
    """Names that the stub of a module declares and the installed module has not."""
    path = TYPING / module.replace(".", "/")
    stub = path / "__init__.pyi" if path.is_dir() else path.with_suffix(".pyi")
    return list(_missing(ast.parse(stub.read_text()).body, importlib.import_module(module)))


def parameters(source: str, function: str) -> list[str]:
    """Names of the parameters of a function, as its source or its stub declares it."""
    for each in ast.walk(ast.parse(source)):
        if isinstance(each, ast.FunctionDef) and each.name == function:
            return [one.arg for one in (*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs)]
    raise LookupError(function)


def _missing(body: Sequence[ast.stmt], found: object) -> Iterator[str]:
    for each in body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef):
            if not hasattr(found, each.name):
                yield each.name
            elif isinstance(each, ast.ClassDef):
                yield from (f"{each.name}.{name}" for name in _missing(each.body, getattr(found, each.name)))
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            target = each.targets[0] if isinstance(each, ast.Assign) else each.target
            if not hasattr(found, ast.unparse(target)):
                yield ast.unparse(target)
