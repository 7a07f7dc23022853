"""The bars for size, types and documentation, so that the code stays one that a newcomer reads in an afternoon."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import dipole_ray

PACKAGE = Path(dipole_ray.__file__).parent
MAX_FILE_LINES, FILE_LINES_P90 = 450, 350
MAX_FUNCTION_LINES, FUNCTION_LINES_P90 = 70, 35

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _trees() -> list[tuple[Path, ast.Module]]:
    """Return every file of the package with its syntax tree."""
    return [(file.relative_to(PACKAGE), ast.parse(file.read_text())) for file in sorted(PACKAGE.rglob("*.py"))]


def _functions() -> Iterator[tuple[str, Function, bool]]:
    """Yield (place, function, whether it is a method) for every function, nested ones too."""
    for file, tree in _trees():
        methods = {id(item) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{file}:{node.lineno} {node.name}", node, id(node) in methods


def _p90(values: list[int]) -> int:
    """Return the value that nine tenths do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def test_files_are_short() -> None:
    lines = {str(file): len((PACKAGE / file).read_text().splitlines()) for file, _ in _trees()}
    assert {file: count for file, count in lines.items() if count > MAX_FILE_LINES} == {}
    assert _p90(list(lines.values())) <= FILE_LINES_P90


def test_functions_are_short() -> None:
    lines = {place: (node.end_lineno or node.lineno) - node.lineno + 1 for place, node, _ in _functions()}
    assert {place: count for place, count in lines.items() if count > MAX_FUNCTION_LINES} == {}
    assert _p90(list(lines.values())) <= FUNCTION_LINES_P90


def test_every_function_is_typed() -> None:
    untyped = []
    for place, node, is_method in _functions():
        arguments = [*node.args.posonlyargs, *node.args.args]
        is_bound = is_method and not any(ast.unparse(item) == "staticmethod" for item in node.decorator_list)
        checked = [*arguments[1 if is_bound else 0 :], *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        if node.returns is None or any(item is not None and item.annotation is None for item in checked):
            untyped.append(place)
    assert untyped == []


def _undocumented(place: str, node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield what is public in a module or class and has no docstring; what a private class has is private."""
    for item in node.body:
        if not isinstance(item, ast.ClassDef | Function) or item.name.startswith("_"):
            continue
        if ast.get_docstring(item) is None:
            yield f"{place}:{item.lineno} {item.name}"
        if isinstance(item, ast.ClassDef):
            yield from _undocumented(place, item)


def test_everything_public_is_documented() -> None:
    bare = [str(file) for file, tree in _trees() if ast.get_docstring(tree) is None]
    for file, tree in _trees():
        bare.extend(_undocumented(str(file), tree))
    assert bare == []


def test_every_setting_is_explained() -> None:
    bare = []
    for file, tree in _trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
                continue
            if not any("dataclass" in ast.unparse(item) for item in node.decorator_list):
                continue
            for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if isinstance(statement, ast.AnnAssign) and not is_text:
                    bare.append(f"{file}:{statement.lineno} {node.name}.{ast.unparse(statement.target)}")
    assert bare == []
