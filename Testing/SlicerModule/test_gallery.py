"""Pictures of the module at work on the example, as a person sees them: panel beside views. Kept, and looked at."""

from __future__ import annotations

import numpy as np
import pytest

from bench.pictures import keep
from qtbench.fixtures import idle, module_widget, panels, picture_of, slicer_app, wait  # noqa: F401

# ruff: noqa: F811

SIZE = (1380, 900)


@pytest.fixture
def layouts(application):
    """Views as large as on a usual screen."""
    from bench.layouts import LayoutManager

    manager = LayoutManager(application, SIZE)
    yield manager
    manager.close()


@pytest.fixture
def example(panels, module_widget):
    """The invented collection, opened by its button."""
    module_widget.parent.show()
    panels.source.ui.exampleButton.click()
    wait(lambda: panels.session.list is not None and panels.session.list.items and idle(panels)(), 90)
    return panels


def beside(module_widget, layouts, first="") -> np.ndarray:
    """The module's panel, scrolled so that a section is on top, beside the views."""
    panel = picture_of(module_widget.parent)
    if first:
        top = getattr(module_widget.panels, first).widget.mapTo(module_widget.parent, _origin()).y()
        panel = panel[top:]
    height = SIZE[1]
    panel = np.pad(panel[:height], ((0, max(0, height - len(panel))), (0, 0), (0, 0)), constant_values=239)
    return np.concatenate([panel, layouts.picture()[:height]], axis=1)


def _origin():
    from PySide6 import QtCore

    return QtCore.QPoint(0, 0)


def test_reading_a_replica_of_the_anatomy_alone(example, module_widget, layouts):
    example.session.setReader("anna")
    wait(idle(example))
    example.session.openItem(example.session.list.find("syn_01"))
    wait(lambda: example.session.pair is not None and idle(example)())
    example.rating.ui.rating3Button.click()
    keep(beside(module_widget, layouts), "gallery_reading")
    assert example.session.pair.training.id == "train_03"
    example.session.openItem(example.session.list.find("syn_05"))
    wait(lambda: example.session.pair is not None and example.session.pair.synthetic.id == "syn_05")
    wait(idle(example))
    example.surfaces.ui.fitRangeButton.click()
    example.surfaces.ui.largestButton.click()
    picture = beside(module_widget, layouts, "comparison")
    keep(picture, "gallery_surfaces")
    example.comparison.ui.overlayButton.click()
    example.comparison.ui.modeBox.setCurrentIndex(example.comparison.ui.modeBox.findData("difference"))
    keep(beside(module_widget, layouts, "case"), "gallery_difference")
    assert picture.shape[:2] == (SIZE[1], SIZE[0] + module_widget.parent.width)
