"""The light part: what the Slicer module uses of the core runs with the packages that Slicer bundles."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from Core.slicer_python import BUNDLED, HEAVY, MODULE, run

CORE = MODULE / "replica_detection"
# What imports with numpy alone: single modules, and rooms (`name.*`) with all that is in them.
LIGHT = (
    "errors",
    "progress",
    "version",
    "util.*",
    "io.*",
    "statistics.*",
    "results.*",
    "readers.*",
    "client.*",
    "phantom.*",
    "surfaces.*",
    "preparation.*",
    "index.entries",
    "registration.placement",
    "registration.alignment",
    "segmentation",
    "measures",
    "detection.distances",
    "detection.null_pool",
    "detection.verdicts",
)
# The library of MRML, and the bench that stands for the rest of the application.
BENCH = ("slicer", "slicer_core", "PySide6", "shiboken6", "bench", "qtbench", "qt", "ctk")


def module_name(path: Path) -> str:
    """`replica_detection.io.volume` of `io/volume.py`; a package goes by its folder's name."""
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def light_modules() -> list[str]:
    """Full names of all modules of LIGHT."""
    names = ["replica_detection"]
    for entry in LIGHT:
        if entry.endswith(".*"):
            names += [module_name(path) for path in sorted((CORE / entry[:-2]).rglob("*.py"))]
        else:
            names.append(f"replica_detection.{entry}")
    return names


def test_light_modules_import_with_numpy_alone():
    code = f"""
import importlib
failed = []
for name in {light_modules()!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{{name}}: {{error}}")
print("\\n".join(failed))
"""
    assert run(code, "numpy").strip() == ""


def test_the_module_uses_light_modules_alone():
    """At file scope and inside functions, so that nothing that it imports late is forgotten in LIGHT."""
    known = set(light_modules())
    used = set()
    for path in (MODULE / "ReplicaDetection.py", *sorted((MODULE / "ReplicaDetectionLib").glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {(path.name, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add((path.name, node.module))
    ours = {(file, name) for file, name in used if name.split(".")[0] == "replica_detection"}
    assert ours, "the module imports nothing of the core"
    assert {(file, name) for file, name in ours if name not in known} == set()


def test_heavy_packages_are_absent_in_that_python():
    code = f"""
import importlib
for name in {HEAVY!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert "Slicer has no" in str(error), error
        print(name)
"""
    assert tuple(run(code, *BUNDLED).split()) == HEAVY


@pytest.mark.slow
@pytest.mark.skipif(find_spec("SimpleITK") is None, reason="SimpleITK is not installed")
def test_the_example_is_written_with_what_slicer_bundles(tmp_path):
    code = f"""
from pathlib import Path
from ReplicaDetectionLib.Example import writeExample
print(writeExample(Path({str(tmp_path)!r}), lambda stage: None))
"""
    folder = Path(run(code, *BUNDLED, timeout=300).strip())
    assert folder == tmp_path / "result" and (folder / "summary.csv").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("slicer") is None or find_spec("PySide6") is None, reason="no MRML library, or no Qt")
def test_the_self_test_passes_with_what_slicer_bundles(tmp_path):
    """The module's own test, as Slicer's runner starts it, on the MRML library and the bench's views and widgets."""
    code = f"""
from pathlib import Path
from qtbench.standalone import running
with running(Path({str(tmp_path)!r})):
    import ReplicaDetection
    ReplicaDetection.ReplicaDetectionTest().runTest()
    print("passed", flush=True)
"""
    assert run(code, *BUNDLED, *BENCH, timeout=600).splitlines()[-1:] == ["passed"]
