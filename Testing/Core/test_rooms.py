"""The rooms of the core: which may import which. CONTRIBUTING shows the order to people, and this test holds it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CORE = PROJECT / "ReplicaDetection" / "replica_detection"
# Files at the root that every room may import; they import no room. `__init__` and `__main__` stand above all rooms.
BASE = {"errors", "progress", "version"}
TOP = {"__init__", "__main__"}


def rooms_in_order() -> list[str]:
    """The first column of the table in CONTRIBUTING, from the ground up."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("| room | what it holds |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)


def module_name(path: Path) -> str:
    """`replica_detection.io.volume` of `io/volume.py`; a package is named without `__init__`."""
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def is_module(name: str) -> bool:
    path = CORE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything of this package that a file imports: at its top, inside functions, for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports by a relative name"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if is_module(part) else str(node.module) for part in parts]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "resolve_name")):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "replica_detection")


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upward(rooms: list[str], root: Path = CORE) -> list[str]:
    """Imports that do not run down, as "file:line -> module"."""
    rank = {**dict.fromkeys(BASE, -1), **{room: n for n, room in enumerate(rooms)}, **dict.fromkeys(TOP, len(rooms))}
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        for line, name in imported(path):
            target = room_of(name)
            if target == "__init__" or target not in rank:
                continue  # the package itself, or a name that `from replica_detection import` takes from it
            if rank[target] > rank[parts[0]]:
                found.append(f"{'/'.join(parts)}:{line} -> {name}")
    return found


def circles(root: Path = CORE) -> list[list[str]]:
    """Modules that import each other in a circle, imports inside functions included; a package is its `__init__`."""
    files = {module_name(p): p for p in root.rglob("*.py")}
    graph = {name: {m for _, m in imported(p) if m in files and m != name} for name, p in files.items()}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        path.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in path:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            part = [path.pop()]
            while part[-1] != name:
                part.append(path.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for name in files:
        if name not in number:
            visit(name)
    return found


def test_every_room_is_in_the_table_of_contributing():
    rooms = rooms_in_order()
    assert rooms, "CONTRIBUTING has no table of rooms"
    assert sorted(rooms) == sorted(p.name for p in CORE.iterdir() if (p / "__init__.py").is_file())


def test_imports_run_down():
    assert upward(rooms_in_order()) == []


def test_no_circle():
    assert circles() == []


def test_only_five_files_at_the_root():
    assert {p.stem for p in CORE.glob("*.py")} == BASE | TOP


def test_an_upward_import_and_a_circle_are_found(tmp_path, monkeypatch):
    root = tmp_path / "replica_detection"
    for room in ("low", "high"):
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("")
    (root / "low" / "a.py").write_text("def f():\n    from replica_detection.high.b import g\n")
    (root / "high" / "b.py").write_text("from replica_detection.low import a\n")
    monkeypatch.setattr("test_rooms.CORE", root)
    assert upward(["low", "high"], root) == [
        "low/a:2 -> replica_detection.high.b",
    ]
    assert circles(root) == [["replica_detection.high.b", "replica_detection.low.a"]]
