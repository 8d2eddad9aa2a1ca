"""The form of the source: short modules and functions, and docstrings that begin with what they describe."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ROOTS = ("ReplicaDetection", "MonaiLabelApp", "docs")
MODULE_LINES, FUNCTION_LINES = 400, 60
# A docstring that begins with one of these asks a question, and the reader has to turn it into a statement.
QUESTIONS = ("What", "How", "Whether", "Who", "Where")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def files() -> list[Path]:
    """All Python files of the project but its tests."""
    found = [PROJECT / "setup.py"]
    for root in ROOTS:
        found += (PROJECT / root).rglob("*.py")
    return sorted(found)


def named_nodes(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """(name, node) of the module, its classes and its functions, at every depth."""
    yield "module", tree
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            yield node.name, node


def length(node: ast.AST) -> int:
    """Lines of a function from `def` to its end, without its docstring."""
    first = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - docstring


def faults(name: str, source: str) -> list[str]:
    """What is wrong with the form of a file, one line for each fault."""
    found = []
    if (lines := len(source.splitlines())) > MODULE_LINES:
        found.append(f"{name}: {lines} lines")
    for what, node in named_nodes(ast.parse(source)):
        begin = (ast.get_docstring(node) or "").split(maxsplit=1)[:1]
        if begin and begin[0].strip(",.:;").removesuffix("'s") in QUESTIONS:
            found.append(f"{name}: the docstring of {what} begins with {begin[0]}")
        if isinstance(node, FUNCTIONS) and length(node) > FUNCTION_LINES:
            found.append(f"{name}: {what} has {length(node)} lines")
    return found


@pytest.mark.parametrize("root", ["setup.py", *ROOTS])
def test_the_form_of_every_file(root):
    checked = [p for p in files() if p.relative_to(PROJECT).parts[0] == root]
    assert checked
    names = ((p.relative_to(PROJECT).as_posix(), p.read_text(encoding="utf-8")) for p in checked)
    assert [fault for name, source in names for fault in faults(name, source)] == []


def function(lines: int, docstring: str = "Returns nothing.") -> str:
    """Source of a function with so many lines besides its docstring."""
    return f'def f():\n    """{docstring}\n\n    More.\n    """\n' + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (function(60), None),
        (function(61), "f has 61 lines"),
        ("class A:\n" + textwrap.indent("async " + function(61), "    "), "f has 61 lines"),
        ("x = 1\n" * 400, None),
        ("x = 1\n" * 401, "401 lines"),
        (function(2, "Whether it is."), "the docstring of f begins with Whether"),
        ('"""How it is."""\n', "the docstring of module begins with How"),
        ('class A:\n    """What it is."""\n', "the docstring of A begins with What"),
        ('"""However it is."""\n', None),
    ],
)
def test_a_fault_of_form_is_found(source, fault):
    assert faults("a.py", source) == ([] if fault is None else [f"a.py: {fault}"])
