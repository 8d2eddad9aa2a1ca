"""The example that the module makes where it is opened; the test of the light part runs the self-test over it."""

from __future__ import annotations

import pytest

from qtbench.fixtures import idle, module_widget, panels, slicer_app, wait  # noqa: F401
from replica_detection.errors import ReplicaDetectionError

# ruff: noqa: F811


def test_the_example_opens_by_its_button_with_progress_and_cancel(panels):
    ui = panels.source.ui
    ui.exampleButton.click()
    wait(lambda: panels.ui.activityLabel.text == "Making the example…" and panels.ui.activityBar.value > 2, 60)
    assert panels.ui.activityBar.maximum == 26
    panels.ui.cancelButton.click()
    assert panels.session.source is None
    assert panels.ui.activityFrame.isHidden()


def test_the_example_is_what_the_core_would_say(tmp_path):
    """Its distances are computed by numpy; the core's kernels, on the files and the core's preparation, agree."""
    from replica_detection.io.cohort import Cohort
    from replica_detection.io.volume import read_mask, read_volume
    from replica_detection.measures import MEASURES
    from replica_detection.preparation.prepare import prepare
    from replica_detection.results.result import DetectionResult
    from ReplicaDetectionLib import Example

    result = DetectionResult.read(Example.writeExample(tmp_path, lambda stage: None))
    preparation = Example._preparation()
    cases = {}
    for part in ("synthetic", "training"):
        for case in Cohort.read(tmp_path / part, masks=tmp_path / f"{part}_masks").cases:
            volume = read_volume(case)
            cases[case.id] = prepare(volume, preparation, mask=read_mask(case.mask, volume))
    for match in result.matches:
        pair = [cases[match.synthetic_id], cases[match.nearest_training_id]]
        measure = MEASURES[match.measure](preparation)
        feature = measure.needs[0]
        blocks = [{feature: measure.features(case)[feature][None]} for case in pair]
        expected = measure.distances(*blocks)[0, 0]
        assert match.distance == pytest.approx(expected, abs=0.02), match


def test_giving_up_the_example_stops_it(tmp_path):
    from ReplicaDetectionLib.Example import writeExample

    def stop(stage):
        raise ReplicaDetectionError("given up")

    with pytest.raises(ReplicaDetectionError):
        writeExample(tmp_path, stop)
    assert not (tmp_path / "result").exists()
