"""The index on disk: built, killed, resumed, appended to, verified, damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from Core.made_dicom import write_series
from Core.made_up import cohort, volume, write
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.index.build import append_cases, build_index, open_or_build, serves
from replica_detection.index.entries import Entry, read_header
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import make_measures

BUILD = """
import sys, time
from replica_detection.index.build import build_index
def slowly(stage, done, total):
    print(done, flush=True)
    time.sleep(0.15)
build_index(sys.argv[1], sys.argv[2], measures=["mae", "ssim"], progress=slowly)
"""
# Voxel measures alone: what is stored, and when, does not depend on the measure.
build = partial(build_index, measures=["mae", "ssim"])


@pytest.fixture
def small(tmp_path):
    return Cohort.read(cohort(tmp_path / "training", 6))


def rows(index):
    return index.features(range(len(index)), ["image"])["image"]


def test_stores_what_was_prepared_in_cohort_order(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    assert index.ids == tuple(c.id for c in small.cases)
    images = rows(index)
    assert images.shape == (6, 24, 28, 20)
    expected = volume(3)
    low, high = np.percentile(expected, (1, 99))
    np.testing.assert_allclose(images[3], np.clip((expected - low) / (high - low), 0, 1), atol=1e-6)
    assert index.verify() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training", "x.rdindex"]


def test_blocks_stream_the_whole_index_in_order(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    one_case = rows(index)[0].nbytes
    blocks = list(index.blocks(["image"], limit=int(one_case * 2.5)))
    assert [start for start, _ in blocks] == [0, 2, 4]
    np.testing.assert_array_equal(np.concatenate([b["image"] for _, b in blocks]), rows(index))


def test_killed_build_leaves_no_index_and_is_resumed(tmp_path):
    """SIGKILL in the middle; the second build reads only the cases that were missing and equals an undisturbed one."""
    training = cohort(tmp_path / "training", 14)
    folder = tmp_path / "x.rdindex"
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(training), str(folder)], stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout is not None
    while int(process.stdout.readline() or 0) < 5:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not folder.exists()
    with pytest.raises(IndexFormatError, match="interrupted build"):
        TrainingIndex.open(folder)
    journal = (tmp_path / "x.rdindex.partial" / "entries.jsonl").read_text(encoding="utf-8").splitlines()
    assert 5 <= len(journal) < 14

    seen = []
    index = build(Cohort.read(training), folder, progress=lambda stage, done, total: seen.append(done))
    assert seen == list(range(len(journal), 15)), "first what was there, then each case"
    fresh = build(Cohort.read(training), tmp_path / "fresh.rdindex")
    assert index.ids == fresh.ids
    assert index.content_id == fresh.content_id
    np.testing.assert_array_equal(rows(index), rows(fresh))
    assert index.verify() == []


def test_kill_cuts_the_journal_in_the_middle_of_a_line(small, tmp_path):
    whole = rows(build(small, tmp_path / "a.rdindex"))
    folder = tmp_path / "b.rdindex"

    class StopError(Exception):
        pass

    def stop(stage, done, total):
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        build(small, folder, progress=stop)
    journal = tmp_path / "b.rdindex.partial" / "entries.jsonl"
    journal.write_bytes(journal.read_bytes()[:-25])

    def stop_again(stage, done, total):
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        build(small, folder, progress=stop_again)
    seen = []
    index = build(small, folder, progress=lambda stage, done, total: seen.append(done))
    assert seen == [5, 6]
    np.testing.assert_array_equal(rows(index), whole)
    assert len(index) == 6


def test_an_interrupted_build_of_other_images_is_not_resumed(small, tmp_path):
    """Neither the grid nor what an embedder learnt from other images is that of these."""

    def stop(stage, done, total):
        if stage == "preparing" and done == 3:
            raise InterruptedError

    folder = tmp_path / "x.rdindex"
    for where in (folder, tmp_path / "none.rdindex"):
        with pytest.raises(InterruptedError):
            build(small, where, progress=stop)
    stale = tmp_path / "x.rdindex.partial" / "encoder_images.safetensors"
    stale.write_bytes(b"of other images")
    (tmp_path / "none.rdindex.partial" / "entries.jsonl").unlink()
    others = Cohort.from_arrays([volume(n)[4:, :, 4:] for n in range(6)], spacing=1, ids=small.ids)
    fresh = build(others, tmp_path / "fresh.rdindex")
    for where in (folder, tmp_path / "none.rdindex"):
        index = build(others, where)
        assert index.preparation == fresh.preparation and index.content_id == fresh.content_id
        np.testing.assert_array_equal(rows(index), rows(fresh))
    assert not (folder / stale.name).exists()


def test_a_file_in_the_place_of_the_index_is_no_index(small, tmp_path):
    (tmp_path / "x.rdindex").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists and is no index"):
        build(small, tmp_path / "x.rdindex")
    assert (tmp_path / "x.rdindex").read_text(encoding="utf-8") == "mine" and not (
        tmp_path / "x.rdindex.partial"
    ).exists()


def test_failed_rebuild_keeps_the_old_index(small, tmp_path):
    folder = tmp_path / "x.rdindex"
    before = build(small, folder).content_id

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small, folder, measures=["mae"], progress=stop)
    assert TrainingIndex.open(folder).content_id == before


def test_append_adds_only_new_cases_and_equals_preparing_them_at_once(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    cohort(tmp_path / "training", 3, first_seed=50, prefix="later")
    more = Cohort.read(tmp_path / "training")
    (index.folder / "nulls").mkdir()
    seen = []
    grown = append_cases(index, more, progress=lambda stage, done, total: seen.append(done))
    assert len(grown) == 9
    assert len(seen) == 3
    assert grown.preparation == index.preparation
    np.testing.assert_array_equal(rows(grown)[:6], rows(index))
    assert grown.verify() == []
    assert len(append_cases(grown, more)) == 9
    assert not (index.folder / "nulls").exists()


def test_interrupted_append_leaves_the_index_as_it_was(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    cohort(tmp_path / "training", 3, first_seed=50, prefix="later")

    def stop(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append_cases(index, Cohort.read(tmp_path / "training"), progress=stop)
    assert TrainingIndex.open(index.folder).ids == index.ids
    grown = append_cases(TrainingIndex.open(index.folder), Cohort.read(tmp_path / "training"))
    assert len(grown) == 9
    assert grown.verify() == []


def test_append_refuses_another_file_under_a_known_id(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    write(tmp_path / "other" / "case_000.nii.gz", volume(99))
    with pytest.raises(InputError, match="case_000"):
        append_cases(index, Cohort.read(tmp_path / "other"))


def test_verify_names_a_changed_input_and_a_damaged_row(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    write(small.cases[2].files[0], volume(77))
    chunk = sorted((index.folder / "features.zarr" / "image").rglob("c/4/*/*/*"))[0]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0xFF
    chunk.write_bytes(data)
    faults = TrainingIndex.open(index.folder).verify()
    assert len(faults) == 2
    assert "case_002" in faults[0] and "changed" in faults[0]
    assert "case_004" in faults[1] and "damaged" in faults[1]


def test_other_schema_version_and_garbage_are_refused(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    path = index.folder / "index.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(IndexFormatError, match="schema version 99"):
        TrainingIndex.open(index.folder)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(IndexFormatError, match="cannot be read"):
        TrainingIndex.open(index.folder)
    path.write_text(json.dumps({**data, "entries": [{**data["entries"][0], "row": 600}]}), encoding="utf-8")
    with pytest.raises(IndexFormatError, match="rows"):
        TrainingIndex.open(index.folder)
    with pytest.raises(IndexFormatError, match="no finished index"):
        TrainingIndex.open(tmp_path / "nowhere")


def test_header_is_read_where_only_numpy_can_be_imported(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    code = """
import sys
from pathlib import Path
for name in ("numba", "torch", "monai", "zarr", "faiss", "nibabel", "skimage", "matplotlib", "scipy", "SimpleITK"):
    sys.modules[name] = None
from replica_detection.index.entries import read_header
header = read_header(Path(sys.argv[1]))
print([e.id for e in header.entries], header.measures, header.preparation.grid, len(header.entries[0].affine))
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(index.folder)], capture_output=True, encoding="utf-8", check=True
    )
    assert said.stdout.strip() == f"{list(index.ids)} ('mae', 'ssim') (24, 28, 20) 16"
    header = read_header(index.folder)
    assert header.entries == index.entries and header.source == str(tmp_path / "training")
    assert json.loads(json.dumps(header.to_json())) == json.loads(
        (index.folder / "index.json").read_text(encoding="utf-8")
    )


def test_options_check_themselves():
    with pytest.raises(ConfigurationError, match="a list of names, found the text 'mae,ssim'"):
        IndexOptions(measures="mae,ssim")
    with pytest.raises(ConfigurationError, match="no measure was named"):
        IndexOptions(measures=[])
    with pytest.raises(ConfigurationError, match="unknown segmenter 'spleen'"):
        IndexOptions(segmenter="spleen")
    with pytest.raises(ConfigurationError, match="unknown embedding 'clip'"):
        IndexOptions(slice_embedding="clip")
    with pytest.raises(InputError, match=r"weights\.pt"):
        IndexOptions(embedding="dino:weights.pt")
    assert IndexOptions(measures=["default", "mae"]).measures == ("default", "mae")


def test_folder_of_something_else_is_never_overwritten(small, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match="is no index"):
        build(small, tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").exists()


def test_bad_files_are_listed_and_strict_stops(small, tmp_path):
    (tmp_path / "training" / "broken.nii.gz").write_bytes(b"not an image")
    broken = Cohort.read(tmp_path / "training")
    index = build(broken, tmp_path / "x.rdindex")
    assert len(index) == 6
    assert any("broken.nii.gz" in p.path for p in TrainingIndex.open(index.folder).problems)
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        build(broken, tmp_path / "y.rdindex", strict=True)


def test_two_builds_of_one_index_do_not_mix(tmp_path):
    training = cohort(tmp_path / "training", 8)
    command = [sys.executable, "-c", BUILD, str(training), str(tmp_path / "x.rdindex")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(InputError, match="another process"):
        build(Cohort.read(training), tmp_path / "x.rdindex")
    process.communicate()
    assert len(TrainingIndex.open(tmp_path / "x.rdindex")) == 8


def test_unknown_names_are_refused_before_any_work(small, tmp_path):
    with pytest.raises(ConfigurationError, match="unknown profile"):
        build(small, tmp_path / "x.rdindex", profile="elbow")
    with pytest.raises(ConfigurationError, match="unknown measure"):
        build(small, tmp_path / "x.rdindex", measures=["psnr"])
    index = build(small, tmp_path / "y.rdindex", measures=["mae"])
    with pytest.raises(ConfigurationError, match="not built for measure 'dice'"):
        index.measures(["dice"])


def test_default_among_the_names_stands_for_the_usual_measures(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex", measures=["default", "memorization_index"])
    usual = [m.name for m in make_measures(None, index.preparation, masks=False, embedders=index.embedders)]
    assert list(index.measure_names) == [*usual, "memorization_index"]
    assert [m.name for m in index.measures(["default"])] == usual
    # What it was not asked for, but holds all features of.
    assert [m.name for m in index.measures(["ncc_elastic", "default"])] == ["ncc_elastic", *usual]
    for served in (None, ["default"], ["ncc_elastic", "mae"], ["default", "memorization_index"]):
        assert serves(index, small, IndexOptions(measures=served))
    for not_served in (["default", "dice"], ["slice_votes"]):
        assert not serves(index, small, IndexOptions(measures=not_served))
    assert not serves(build(small, tmp_path / "y.rdindex", measures=["mae"]), small, IndexOptions(measures=["default"]))


def test_rows_of_an_earlier_version_are_told_and_built_again(small, tmp_path):
    folder = build(small, tmp_path / "x.rdindex").folder
    path = folder / "index.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for entry in data["entries"]:
        del entry["voxels"], entry["relative"]
    path.write_text(json.dumps({**data, "schema_version": 3}), encoding="utf-8")
    old = TrainingIndex.open(folder)
    assert [id for id, text in old.warnings if "build the index again" in text] == list(small.ids)
    assert not serves(old, small, IndexOptions(measures=["mae"]))
    # Appended ones are of this version; the others stay told.
    cohort(tmp_path / "training", 7)
    grown = append_cases(old, tmp_path / "training")
    assert [id for id, _ in grown.warnings] == list(small.ids) and len(grown) == 7
    again = open_or_build(small, folder, IndexOptions(measures=["mae", "ssim"]))
    assert all(again.voxels) and not again.warnings


def test_touched_file_still_serves_and_changed_file_does_not(small, tmp_path):
    index = build(small, tmp_path / "x.rdindex")
    path = Path(small.cases[0].files[0])
    os.utime(path, (time.time() + 60, time.time() + 60))
    assert serves(index, small, IndexOptions(measures=["mae"]))
    assert not serves(index, small, IndexOptions("head-ct", ["mae"]))
    write(path, volume(88))
    assert not serves(index, small, IndexOptions(measures=["mae"]))


@pytest.mark.parametrize(("measures", "mask"), [(["mae"], ""), (["dice"], "file")])
def test_the_mask_is_no_file_of_the_image_whether_used_or_not(tmp_path, measures, mask):
    write(tmp_path / "training" / "one.nii.gz", volume(1))
    write(tmp_path / "masks" / "one.nii.gz", (volume(1) > 500).astype(np.uint8))
    (tmp_path / "training" / "two").mkdir()
    write_series(tmp_path / "training" / "two", volume(2)[:5].astype(np.uint16), [(0, 0, z) for z in range(5)])
    read = Cohort.read(tmp_path / "training")
    mask_file = tmp_path / "masks" / "one.nii.gz"
    masked = Cohort(read.source, tuple(replace(c, mask=mask_file) for c in read.cases if len(c.files) == 1))
    index = build(masked, tmp_path / "x.rdindex", measures=measures)
    (entry,) = index.entries
    assert entry.mask == mask and entry.images == ((tmp_path / "training" / "one.nii.gz").resolve(),)
    assert serves(index, masked, IndexOptions(measures=measures))

    # As versions wrote it that did not say how many files are the image.
    stored = json.loads((index.folder / "index.json").read_text(encoding="utf-8"))
    assert stored["entries"][0].pop("image_count") == 1
    (index.folder / "index.json").write_text(json.dumps(stored), encoding="utf-8")
    old = TrainingIndex.open(index.folder)
    assert old.entries[0].images == entry.images
    assert serves(old, masked, IndexOptions(measures=measures)) and old.verify() == []

    (series,) = [c for c in read.cases if len(c.files) > 1]
    names = tuple(map(str, series.files))
    listed = Entry("two", None, 0, (*names, str(mask_file)), (), (), "", mask)
    assert listed.images == series.files
