"""Blinded reading: nothing in the scene, its files or the report tells which image is which, or whose."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import made_pairs
import numpy as np
import pytest
import slicer
import vtk

from bench.pictures import keep, near
from replica_detection.errors import InputError
from replica_detection.readers.ratings import Rating
from replica_detection.results.schema import Histogram
from ReplicaDetectionLib.Blinding import NAMES, Blinding
from ReplicaDetectionLib.ComparisonLayout import ROWS

IDS = ("syn_0007", "patient_0042")
KEY = "0123456789abcdef0123"
TELLING = re.compile(rb"syn_0007|patient_0042|synthetic|training", re.IGNORECASE)


def everything_in(path: Path):
    """(name, bytes) of each member of an .mrb, packed parts unpacked as well."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            yield name, name.encode()
            yield name, content
            for start in (m.start() for m in re.finditer(b"\x1f\x8b\x08", content)):
                try:
                    yield name, zlib.decompressobj(wbits=31).decompress(content[start:])
                except zlib.error:
                    continue


def dump(scene) -> str:
    """All that the scene's nodes say of themselves, attributes and subject hierarchy included."""
    nodes = (scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes()))
    told = []
    for node in nodes:
        told += [node.GetName() or "", node.GetDescription() or ""]
        told += [f"{a}={node.GetAttribute(a)}" for a in node.GetAttributeNames()]
        if node.IsA("vtkMRMLStorageNode"):
            told.append(node.GetFileName() or "")
        if node.IsA("vtkMRMLAbstractViewNode"):
            told += [node.GetLayoutLabel() or "", node.GetLayoutName() or ""]
    hierarchy, items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene), vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    told += [hierarchy.GetItemName(items.GetId(i)) for i in range(items.GetNumberOfIds())]
    return "\n".join(told)


def key_that_swaps(wanted: bool) -> Blinding:
    return next(b for b in map(Blinding, (f"{n:032d}" for n in range(100))) if b.swapped(*IDS) == wanted)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_saved_blinded_scene_tells_nothing(logic, layouts, tmp_path, swapped: bool):
    logic.plot.show(Histogram("dice", IDS[:1], (0.3,), (0.7, 0.8), 0.5), IDS[0])
    # A case that was shown openly before leaves no trace.
    logic.showPair(made_pairs.pair())
    logic.layout.set("overlay")
    logic.showPair(made_pairs.pair(alignment=made_pairs.mirrored()), key_that_swaps(swapped))
    for mode in ("difference", "checkerboard", "fade"):
        logic.composition.setMode(mode)
    logic.surfaces.jumpToLargest()
    logic.layout.set("rows")
    path = logic.saveScene(tmp_path / f"{logic.caseName()}.mrb")
    assert re.fullmatch(r"Case [0-9A-F]{8}\.mrb", path.name)
    for name, content in everything_in(path):
        found = TELLING.search(content)
        assert found is None, (name, content[max(0, found.start() - 80) : found.end() + 40])
    told = dump(logic.scene)
    assert TELLING.search(told.encode()) is None
    assert all(name in told for name in NAMES)
    assert not list(tmp_path.glob(".*"))


def test_the_check_finds_what_an_open_scene_tells(logic, tmp_path):
    """The test above would fail on an open scene, and so would not pass by looking nowhere."""
    logic.showPair(made_pairs.pair())
    path = logic.saveScene(tmp_path / "open.mrb")
    assert any(TELLING.search(content) for _, content in everything_in(path))


def test_what_somebody_else_loaded_is_not_let_out(logic, tmp_path):
    logic.showPair(made_pairs.pair(), Blinding(KEY))
    stray = logic.scene.AddNewNodeByClass("vtkMRMLTextNode", "patient_0042 report")
    with pytest.raises(InputError, match="tell the name of a blinded case"):
        logic.saveScene(tmp_path / "blinded.mrb")
    assert not (tmp_path / "blinded.mrb").exists()
    logic.scene.RemoveNode(stray)
    stray = logic.scene.AddNewNodeByClass("vtkMRMLTextNode", "note")
    stray.SetText("this one is patient_0042")
    with pytest.raises(InputError, match="tell the name of a blinded case"):
        logic.saveScene(tmp_path / "blinded.mrb")
    logic.scene.RemoveNode(stray)
    assert logic.saveScene(tmp_path / "blinded.mrb").is_file()


def test_short_and_numeric_names_do_not_stop_a_harmless_scene(logic, tmp_path):
    logic.showPair(made_pairs.pair(ids=("7", "12")), Blinding(KEY))
    assert logic.saveScene(tmp_path / "blinded.mrb").is_file()
    logic.scene.AddNewNodeByClass("vtkMRMLTextNode", "patient 12")
    with pytest.raises(InputError, match="tell the name"):
        logic.saveScene(tmp_path / "again.mrb")


def test_both_sides_look_alike_whichever_is_synthetic(logic, layouts):
    """The same image on both sides gives the same picture, swapped or not: colours and labels go by row."""
    pictures = []
    for swapped in (False, True):
        pair = made_pairs.pair_of(*[made_pairs.read(name, True, seed=1) for name in IDS])
        logic.showPair(pair, key_that_swaps(swapped))
        labels = [logic.layout.sliceNode(row, "Axial").GetLayoutLabel() for row in ROWS]
        assert labels == ["A", "B"] and logic.names() == NAMES
        pictures.append(layouts.picture())
    keep(pictures[0], "blinded")
    assert near(pictures[0], pictures[1], 2).mean() > 0.999


def test_sides_are_even_and_depend_on_the_key():
    pairs = [(f"syn_{n}", f"train_{n % 7}") for n in range(2000)]
    first, second = (np.array([Blinding(key).swapped(*p) for p in pairs]) for key in (KEY, KEY[::-1]))
    # 5 standard deviations of a fair coin.
    assert abs(first.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)
    assert abs((first == second).mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)
    assert np.array_equal(first, [Blinding(KEY).swapped(*p) for p in pairs])


def test_codes_differ_and_tell_nothing():
    codes = {Blinding(KEY).code(f"syn_{n}", "train_1") for n in range(2000)}
    assert len(codes) == 2000
    assert Blinding(KEY).code(*IDS) != Blinding(Blinding.newKey()).code(*IDS)


def test_a_key_that_can_be_guessed_is_refused():
    with pytest.raises(ValueError, match="newKey"):
        Blinding("study 1")
    assert len({Blinding.newKey() for _ in range(100)}) == 100


@pytest.mark.parametrize("swapped", [False, True])
def test_revealed_the_true_names_stand_on_their_sides(logic, swapped: bool):
    pair = made_pairs.pair()
    logic.showPair(pair, key_that_swaps(swapped))
    logic.layout.set("overlay")
    logic.composition.setMode("difference")
    logic.reveal()
    expected = ("Synthetic syn_0007", "Training patient_0042")
    assert logic.names() == (expected[::-1] if swapped else expected)
    first = logic.volumes()[0]
    assert first.GetName() == logic.names()[0]
    array = pair.training.array if swapped else pair.synthetic.array
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(first).T, array)
    assert logic.scene.GetFirstNodeByName(f"{logic.names()[0]} surface") is not None
    assert logic.scene.GetFirstNodeByName(" - ".join(logic.names())) is not None
    assert logic.layout.sliceNode("First", "Axial").GetLayoutLabel() == ("T" if swapped else "S")


def test_a_blinded_report_has_code_rating_and_no_score(logic, layouts, tmp_path):
    logic.showPair(made_pairs.pair(), Blinding(KEY))
    rating = Rating("r1", "Dr A", *IDS, 3, comment="nearly", blinded=True, seconds=12.0, created="2026-01-31T14:05:00")
    scene, page = logic.writeReport(tmp_path / "out", {"A Axial": layouts.view("ReplicaFirstAxial").picture()}, rating)
    text = page.read_text(encoding="utf-8")
    assert TELLING.search(scene.name.encode()) is None and TELLING.search(page.name.encode()) is None
    shown = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"syn_0007|patient_0042|0\.998|replica\b.*score", shown)
    assert "Rating 3" in shown and "nearly" in shown and "Image A" in shown and logic.caseName() in shown
