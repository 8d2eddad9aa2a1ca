"""What Slicer's build, its extensions index and its translators read, checked without any of them."""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MODULE = PROJECT / "ReplicaDetection"
LIB = MODULE / "ReplicaDetectionLib"
UI = sorted((MODULE / "Resources" / "UI").glob("*.ui"))
# What Slicer brings along, beside Python's own library.
BUNDLED = {"numpy", "scipy", "vtk", "vtkmodules", "slicer", "qt", "ctk", "SimpleITK", "requests"}
OURS = {"ReplicaDetectionLib", "replica_detection"}


def sources() -> list[Path]:
    return [MODULE / "ReplicaDetection.py", *sorted(LIB.glob("*.py"))]


# --- CMake


@pytest.fixture(scope="module")
def packaged(tmp_path_factory) -> dict[str, list[str]]:
    """The files that the module's CMakeLists.txt hands to Slicer's macro."""
    if shutil.which("cmake") is None:
        pytest.skip("no CMake")
    work = tmp_path_factory.mktemp("cmake")
    (work / "CMakeLists.txt").write_text(
        f"""
cmake_minimum_required(VERSION 3.16.3)
project(Stub LANGUAGES NONE)
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(A "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${{ARGN}})
  if(A_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown: ${{A_UNPARSED_ARGUMENTS}}")
  endif()
  file(WRITE "{work}/found.txt" "${{A_NAME}}\\n${{A_SCRIPTS}}\\n${{A_RESOURCES}}")
endfunction()
function(slicer_add_python_unittest)
  file(WRITE "{work}/test.txt" "${{ARGN}}")
endfunction()
set(BUILD_TESTING ON)
add_subdirectory({MODULE} {work}/module)
""",
        encoding="utf-8",
    )
    done = subprocess.run(["cmake", "-S", work, "-B", work / "build"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    name, scripts, resources = (work / "found.txt").read_text(encoding="utf-8").split("\n")
    return {
        "name": [name],
        "scripts": scripts.split(";"),
        "resources": resources.split(";"),
        "test": (work / "test.txt").read_text(encoding="utf-8").split(";"),
    }


def test_every_python_file_is_packaged(packaged):
    wanted = [MODULE / "ReplicaDetection.py", *LIB.rglob("*.py"), *(MODULE / "replica_detection").rglob("*.py")]
    assert sorted(packaged["scripts"]) == sorted(p.relative_to(MODULE).as_posix() for p in wanted)
    assert packaged["name"] == ["ReplicaDetection"]
    assert packaged["test"] == ["SCRIPT", "ReplicaDetection.py"]


def test_every_resource_is_packaged(packaged):
    wanted = [p for p in (MODULE / "Resources").rglob("*") if p.is_file()]
    assert sorted(packaged["resources"]) == sorted(p.relative_to(MODULE).as_posix() for p in wanted)


def test_no_other_file_beside_the_module_is_taken_for_a_module():
    assert [p.name for p in MODULE.glob("*.py")] == ["ReplicaDetection.py"]


def test_no_folder_is_named_as_slicer_s_own_package():
    """`import slicer` of the MRML library imports every module of every such folder on Python's path."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, encoding="utf-8"
    ).stdout.splitlines()
    assert tracked
    assert not [p for p in tracked if any(part.lower() == "slicer" for part in Path(p).parts[:-1])]


# --- extensions index


def test_extension_metadata_is_read_by_pattern():
    text = (PROJECT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"\n]*)"\)$', text, re.M))
    assert set(found) == {"HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"}
    assert re.search(r"^project\((\w+)", text, re.M).group(1) == "ReplicaDetection"
    assert len(re.findall(r"^set\(", text, re.M)) == len(found)
    for key in ("ICONURL", "SCREENSHOTURLS"):
        path = found[key].split("/raw/main/")[1]
        assert (PROJECT / path).is_file(), path
    assert "question" in found["DESCRIPTION"], "the index asks whether data leave the computer"


def test_catalogue_entry_keeps_to_the_schema():
    """Keys, types and tiers of the catalogue entry schema v1.0.1."""
    path = PROJECT / "ReplicaDetection.json"
    assert b"\r" not in path.read_bytes()
    entry = json.loads(path.read_text(encoding="utf-8"))
    required = {"$schema": str, "category": str, "scm_url": str}
    optional = {
        "scm_revision": str,
        "scm_type": str,
        "build_dependencies": list,
        "dicom_support_rule": str,
        "build_subdirectory": str,
        "enabled": bool,
        "tier": int,
    }
    assert set(required) <= set(entry) <= set(required) | set(optional)
    for key, value in entry.items():
        assert type(value) is (required | optional)[key], key
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry["tier"] in (1, 3, 5)
    assert entry["scm_url"].startswith("https://")
    assert entry["scm_url"].endswith("/Slicer" + path.stem)


def test_icon_is_128_by_128_with_transparency():
    data = (MODULE / "Resources" / "Icons" / "ReplicaDetection.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (width, height, depth, colour) == (128, 128, 8, 6)


# --- sources


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.name)
def test_nothing_but_slicer_s_own_is_imported(path):
    """At file scope only what is light; anywhere only what Slicer brings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {name for node in tree.body for name in imported(node)}
    every = {name for node in ast.walk(tree) for name in imported(node)}
    standard = set(sys.stdlib_module_names)
    assert top - standard - OURS <= {"numpy", "slicer", "qt", "ctk"}
    assert every - standard - OURS <= BUNDLED


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.split(".")[0]}
    return set()


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.name)
def test_nothing_runs_at_import(path):
    """Definitions, constants and imports; no calls but those that make constants."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.Try)
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, allowed), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "TYPE_CHECKING", f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.name)
def test_nothing_that_one_of_the_two_qt_versions_lacks(path):
    text = path.read_text(encoding="utf-8")
    for gone in ("exec_(", "QRegExp", "QTextCodec", "QDesktopWidget", "QStringList", "import imp\n"):
        assert gone not in text, gone


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.name)
def test_no_signal_s_argument_lands_in_a_default(path):
    """`lambda x=x: ...` connected to a signal with an argument would be given that argument as x under PythonQt."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "connect":
            for argument in node.args:
                assert not (isinstance(argument, ast.Lambda) and argument.args.defaults), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.name)
def test_translated_texts_are_plain(path):
    """Translators see the literal: a formatted text would never be found in their tables."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            assert len(node.args) == 1
            text = node.args[0]
            from_the_core = isinstance(text, ast.Subscript) and ast.unparse(text.value) == "SCALE"
            plain = isinstance(text, ast.Constant) and isinstance(text.value, str)
            assert plain or from_the_core, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.name)
def test_files_and_functions_are_short_and_docstrings_name_what_they_give(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        said = ast.get_docstring(node) or ""
        assert not re.match(r"(What|How|Whether|Who|Whose|Where|Which|Why)\b", said), said
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno - said.count("\n") <= 60, f"{path.name}:{node.lineno}"


# --- .ui files


@pytest.mark.parametrize("path", UI, ids=lambda p: p.stem)
def test_ui_file(path):
    from qtbench import CUSTOM_WIDGETS

    root = ElementTree.parse(path).getroot()
    known = {c.__name__ for c in CUSTOM_WIDGETS}
    declared = {e.findtext("class") for e in root.iter("customwidget")}
    assert declared <= known
    used = {e.get("class") for e in root.iter("widget")}
    assert {c for c in used if not c.startswith("Q")} == declared
    names = [e.get("name") for e in root.iter("widget")]
    assert len(names) == len(set(names)), "childWidgetVariables finds widgets by name"
    assert root.findtext("class") == path.stem == root.find("widget").get("name")


@pytest.mark.parametrize("path", UI, ids=lambda p: p.stem)
def test_every_named_widget_is_used_and_every_used_one_exists(path):
    source = LIB / f"{'Widget' if path.stem == 'ReplicaDetection' else path.stem}.py"
    text = source.read_text(encoding="utf-8")
    used = set(re.findall(r"(?<!connection\.)\bui\.(\w+)", text))
    used |= {f"rating{i}Button" for i in range(1, 5)} if "rating{point}Button" in text else set()
    root = ElementTree.parse(path).getroot()
    names = {e.get("name") for e in root.iter("widget")}
    assert used <= names, f"{source.name} uses what {path.name} lacks: {used - names}"
    # Labels, frames and containers may stand there for the eye alone.
    controls = {
        e.get("name")
        for e in root.iter("widget")
        if e.get("class") not in ("QLabel", "QWidget", "QFrame", "QGroupBox", "ctkCollapsibleButton", "qMRMLWidget")
    }
    assert controls <= used, f"{path.name} holds what {source.name} never uses: {controls - used}"
