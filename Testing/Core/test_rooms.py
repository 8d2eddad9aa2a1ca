"""The rooms of the core and of the server: which may import which. CONTRIBUTING and the server's README show the order
to people, and this test holds it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class House:
    """A package whose modules stand in rooms.

    `base` are the files at the root that every room may import and that import no room; `top` stand above all rooms.
    """

    root: Path
    package: str
    table: Path
    base: frozenset[str]
    top: frozenset[str]

    def rooms(self) -> list[str]:
        """The first column of the table of rooms, from the ground up."""
        text = self.table.read_text(encoding="utf-8")
        table = text.split("| room | what it holds |", 1)[1].split("\n\n", 1)[0]
        return re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)

    def module_name(self, path: Path) -> str:
        """`replica_detection.io.volume` of `io/volume.py`; a package is named without `__init__`."""
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join((self.package, *(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)))

    def is_module(self, name: str) -> bool:
        package, *rest = name.split(".")
        path = self.root.joinpath(*rest)
        inside = package == self.package and bool(rest)
        return inside and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())

    def imported(self, path: Path) -> Iterator[tuple[int, str]]:
        """(line, module) of everything of this package that a file imports: at its top, inside functions, for types."""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno} imports by a relative name"
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [part if self.is_module(part) else str(node.module) for part in parts]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "resolve_name")):
                names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            else:
                continue
            yield from ((node.lineno, name) for name in names if name.split(".")[0] == self.package)

    def upward(self, rooms: list[str]) -> list[str]:
        """Imports that do not run down, as "file:line -> module"."""
        order = {room: n for n, room in enumerate(rooms)}
        rank = {**dict.fromkeys(self.base, -1), **order, **dict.fromkeys(self.top, len(rooms))}
        found = []
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            for line, name in self.imported(path):
                target = name.split(".")[1] if "." in name else "__init__"
                if target == "__init__" or target not in rank:
                    continue  # the package itself, or a name that `from package import` takes from it
                if rank[target] > rank[parts[0]]:
                    found.append(f"{'/'.join(parts)}:{line} -> {name}")
        return found

    def circles(self) -> list[list[str]]:
        """Modules that import each other in a circle, also inside functions; a package is its `__init__`."""
        files = {self.module_name(p): p for p in self.root.rglob("*.py")}
        return circles_of(
            {name: {m for _, m in self.imported(p) if m in files and m != name} for name, p in files.items()}
        )


def circles_of(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of a graph that have more than one node (Tarjan 1972)."""
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

    for name in graph:
        if name not in number:
            visit(name)
    return found


CORE = House(
    PROJECT / "ReplicaDetection" / "replica_detection",
    "replica_detection",
    PROJECT / "CONTRIBUTING.md",
    frozenset({"errors", "progress", "version"}),
    frozenset({"__init__", "__main__"}),
)
SERVER = House(
    PROJECT / "MonaiLabelApp",
    "replica_detection_server",
    PROJECT / "MonaiLabelApp" / "README.md",
    frozenset({"errors"}),
    # MONAI Label loads main.py of the folder of its app.
    frozenset({"__init__", "main", "app"}),
)
houses = pytest.mark.parametrize("house", [CORE, SERVER], ids=["core", "server"])


@houses
def test_every_room_is_in_the_table(house):
    rooms = house.rooms()
    assert rooms, f"{house.table.name} has no table of rooms"
    assert sorted(rooms) == sorted(p.name for p in house.root.iterdir() if (p / "__init__.py").is_file())


@houses
def test_imports_run_down(house):
    assert house.upward(house.rooms()) == []


@houses
def test_no_circle(house):
    assert house.circles() == []


@houses
def test_few_files_at_the_root(house):
    assert {p.stem for p in house.root.glob("*.py")} == house.base | house.top


def test_an_upward_import_and_a_circle_are_found(tmp_path):
    root = tmp_path / "Folder"
    for room in ("low", "high"):
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("", encoding="utf-8")
    (root / "low" / "a.py").write_text("def f():\n    from named.high.b import g\n", encoding="utf-8")
    (root / "high" / "b.py").write_text("from named.low import a\n", encoding="utf-8")
    house = House(root, "named", tmp_path / "table.md", frozenset(), frozenset())
    assert house.upward(["low", "high"]) == ["low/a:2 -> named.high.b"]
    assert house.circles() == [["named.high.b", "named.low.a"]]
