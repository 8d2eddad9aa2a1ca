"""The module's life: found, opened, left, entered again, reloaded, unloaded; scenes closed and loaded under it."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import unittest
import weakref
from pathlib import Path

import pytest
import slicer
from made_source import MEASURES, MadeSource

from qtbench.fixtures import MODULE, idle, make_widget, module_widget, panels, press, slicer_app, wait  # noqa: F401

# ruff: noqa: F811

HEAVY = {
    "torch",
    "monai",
    "numba",
    "zarr",
    "skimage",
    "matplotlib",
    "nibabel",
    "SimpleITK",
    "scipy",
    "pydicom",
    "requests",
}


@pytest.fixture
def reading(panels):
    panels.session.setReader("anna")
    panels.session.open(lambda task: MadeSource(6))
    wait(idle(panels))
    panels.session.step(1)
    wait(lambda: panels.session.pair is not None)
    return panels


def run_in_slicer(code: str, folder: Path) -> str:
    """Runs code in a fresh interpreter with the bench installed and nothing in the layout; returns what it printed."""
    here = Path(__file__).resolve().parent
    start = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(here)!r}, {str(MODULE.parent)!r}]
from qtbench.standalone import running
with running(Path({str(folder)!r}), views=False):
"""
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.indent(code, "    ")],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_finding_the_module_imports_nothing_of_it(tmp_path):
    """Slicer imports the module file of every module at its start."""
    out = run_in_slicer(
        """
import ReplicaDetection
print([m for m in sys.modules if m.split(".")[0] in ("ReplicaDetectionLib", "replica_detection", "numpy")])
""",
        tmp_path,
    )
    # numpy comes with the bench's own views.
    assert out.strip() in ("[]", "['numpy']") or all(m.startswith("numpy") for m in eval(out))


def test_opening_the_module_imports_nothing_heavy(tmp_path):
    out = run_in_slicer(
        f"""
before = set(sys.modules)
import ReplicaDetection
widget = ReplicaDetection.ReplicaDetectionWidget()
widget.enter()
new = {{m.split(".")[0] for m in set(sys.modules) - before}}
print(sorted(new & {HEAVY!r}))
print(sorted(new))
sys.stdout.flush()
os._exit(0)
""",
        tmp_path,
    )
    assert out.splitlines()[0] == "[]", out


def test_title_icon_and_help(slicer_app):
    import importlib
    from types import SimpleNamespace

    sys.modules.pop("ReplicaDetection", None)
    module = importlib.import_module("ReplicaDetection")
    parent = SimpleNamespace(path=str(MODULE))
    made = module.ReplicaDetection(parent)
    assert parent.title == "Replica Detection"
    assert parent.categories == ["Quantification"]
    assert "only after a question" in parent.helpText
    assert Path(made.resourcePath("Icons/ReplicaDetection.png")).is_file()


def test_keys_work_only_while_the_module_is_shown(reading, module_widget):
    module_widget.parent.show()
    press(module_widget.parent, "3")
    assert reading.session.reading.draft.rating == 3
    module_widget.exit()
    press(module_widget.parent, "1")
    assert reading.session.reading.draft.rating == 3
    assert not reading._poll.active
    module_widget.enter()
    module_widget.enter()  # Slicer may enter a module twice; the keys must not be ambiguous then
    press(module_widget.parent, "1")
    assert reading.session.reading.draft.rating == 1


def test_the_clock_stops_while_another_module_is_shown(reading, module_widget):
    module_widget.exit()
    before = reading.session.reading.seconds
    wait(lambda: True)
    threading.Event().wait(0.2)
    assert reading.session.reading.seconds == before
    module_widget.enter()
    threading.Event().wait(0.05)
    assert reading.session.reading.seconds > before


def test_entering_again_shows_the_comparison_again(reading, module_widget, layouts):
    assert reading.logic.layout.current == "rows"
    module_widget.exit()
    layouts.setLayout(layouts.node.SlicerLayoutConventionalView)
    assert reading.logic.layout.current == ""
    module_widget.enter()
    assert reading.logic.layout.current == "rows"


def test_closing_the_scene_clears_the_case_and_keeps_the_session(reading, application):
    reading.comparison.ui.overlayButton.click()
    reading.plot.widget.collapsed = False
    wait(lambda: reading.plot.ui.measureBox.count == 1 + len(MEASURES))
    application.close_scene()
    assert reading.session.pair is None
    assert reading.worklist.ui.caseTable.rowCount == 6
    assert not reading.report.ui.reportButton.enabled
    assert reading.case.ui.findings.isHidden()
    assert reading.comparison.layout == "rows", "a new scene looks as a new scene does"
    reading.session.step(1)
    wait(lambda: reading.session.pair is not None)
    assert reading.logic.volumes()[0].GetScene() is slicer.mrmlScene
    assert reading.plot._view.GetPlotChartNode() is not None


def test_closing_the_scene_while_a_case_is_being_read(panels, application):
    source = MadeSource(6)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    source.hold.set()
    panels.session.step(1)
    application.close_scene()
    source.hold.clear()
    wait(idle(panels))
    assert panels.session.pair is None
    assert panels.ui.activityFrame.isHidden()


def test_a_saved_scene_keeps_how_cases_are_looked_at(reading, application, tmp_path):
    reading.comparison.ui.singleButton.click()
    reading.comparison.ui.planeBox.setCurrentIndex(reading.comparison.ui.planeBox.findData("Sagittal"))
    reading.comparison.ui.opacitySlider.value = 0.3
    reading.surfaces.ui.outlinesBox.click()
    path = tmp_path / "scene.mrb"
    reading.logic.saveScene(path)
    application.close_scene()
    assert reading.comparison.layout == "rows"
    slicer.mrmlScene.ReadFromMRB(str(path))
    assert reading.comparison.layout == "single"
    assert reading.comparison.ui.planeBox.currentData == "Sagittal"
    assert reading.comparison.ui.opacitySlider.value == pytest.approx(0.3)
    assert not reading.surfaces.ui.outlinesBox.checked


def test_the_scene_holds_nothing_of_key_server_and_reader(reading, tmp_path):
    import zipfile

    reading.source.connection.ui.keyEdit.setText("secret-key")
    reading.logic.saveScene(tmp_path / "scene.mrb")
    with zipfile.ZipFile(tmp_path / "scene.mrb") as stored:
        text = b"".join(stored.read(name) for name in stored.namelist() if name.endswith(".mrml"))
    assert b"vtkMRMLScriptedModule" in text or b"ScriptedModule" in text
    for word in (b"secret-key", b"127.0.0.1", b"anna"):
        assert word not in text


def test_a_broken_parameter_node_does_no_harm(panels):
    node = panels._node()
    node.SetParameter("opacity", "much")
    node.SetParameter("layout", "spiral")
    node.SetParameter("mode", "")
    panels._restore()
    assert panels.comparison.layout == "rows"
    assert panels.comparison.ui.opacitySlider.value == pytest.approx(0.5)


def test_unloading_leaves_nothing_behind(slicer_app, application):
    widget = make_widget()
    widget.enter()
    gone = weakref.ref(widget.panels)
    read_and_unload(widget, application.scene)
    wait(lambda: not [t for t in threading.enumerate() if t.name == "ReplicaDetection"])
    widget.parent.hide()
    widget.parent.deleteLater()
    del widget
    slicer_app.processEvents()
    application.close_scene()
    gc.collect()
    assert gone() is None or not gone()._observed


def read_and_unload(widget, scene):
    """The module is unloaded while a case is on screen and another one is being read."""
    panels, source = widget.panels, MadeSource(6)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    panels.session.step(1)
    wait(lambda: panels.session.pair is not None)
    path = panels.source._temporaryFolder()
    assert path.is_dir()
    source.hold.set()
    panels.session.step(1)
    slicer.app.moduleManager().moduleAboutToBeUnloaded.emit("ReplicaDetection")
    source.hold.clear()
    assert not path.exists()
    assert not panels.transport._timer.active
    assert not panels._poll.active
    assert panels.session.source is None
    left = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    data = ("vtkMRMLVolumeNode", "vtkMRMLModelNode", "vtkMRMLMarkupsNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTableNode")
    names = [n.GetName() or "" for n in left if any(n.IsA(kind) for kind in data)]
    # Every slice view has a model of its own plane.
    assert not [n for n in names if not n.endswith("Volume Slice")]
    assert not [n.GetName() for n in left if "syn_" in (n.GetName() or "") or "train_" in (n.GetName() or "")]


def test_reloading_reads_the_whole_package_again(module_widget, monkeypatch):
    """Slicer itself reads the module file again; the package under it would stay as it was."""
    import ReplicaDetectionLib.Widget as Before

    reloaded = []
    monkeypatch.setattr(slicer.util, "reloadScriptedModule", reloaded.append)
    kept = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("ReplicaDetectionLib", "replica_detection")}
    try:
        module_widget.onReload()
        assert reloaded == ["ReplicaDetection"]
        assert "ReplicaDetectionLib.Widget" not in sys.modules
        assert "replica_detection.results.schema" not in sys.modules
        again = make_widget()
        assert type(again.panels) is not Before.Widget
        again.cleanup()
        again.parent.deleteLater()
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] in ("ReplicaDetectionLib", "replica_detection")]:
            del sys.modules[name]
        sys.modules.update(kept)


def test_the_module_opens_without_the_main_window(application, tmp_path):
    """Slicer's generic tests make every module's widget in an application without windows."""
    import qtbench

    application.scene.RemoveNode(application.scene.GetFirstNodeByClass("vtkMRMLLayoutNode"))
    qtbench.install(
        application.scene, "ReplicaDetection", MODULE, tmp_path, modules=application.modules, logic=application.appLogic
    )
    widget = make_widget()
    widget.enter()
    widget.exit()
    widget.cleanup()
    widget.parent.deleteLater()
    with pytest.raises(unittest.SkipTest):
        sys.modules["ReplicaDetection"].ReplicaDetectionTest().runTest()


def test_scripts_get_the_displays_without_the_panel(slicer_app):
    import importlib

    sys.modules.pop("ReplicaDetection", None)
    logic = importlib.import_module("ReplicaDetection").ReplicaDetectionLogic()
    displays = logic.makeDisplays()
    displays.showPair(MadeSource().pair("syn_0003"))
    assert displays.names() == ("Synthetic syn_0003", "Training train_003")
    displays.clear()
