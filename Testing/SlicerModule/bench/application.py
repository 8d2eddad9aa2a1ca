"""BenchApplication: scene, application logic and module logics, put together in the order that Slicer uses."""

from __future__ import annotations

import types
from pathlib import Path

import slicer
import vtk

# slicer.modules.<name>: (the name under which the logics look each other up, class).
MODULES = {
    "colors": ("Colors", "vtkSlicerColorLogic"),
    "volumes": ("Volumes", "vtkSlicerVolumesLogic"),
    "models": ("Models", "vtkSlicerModelsLogic"),
    "markups": ("Markups", "vtkSlicerMarkupsLogic"),
    "terminologies": ("Terminologies", "vtkSlicerTerminologiesModuleLogic"),
    "segmentations": ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
    "subjecthierarchy": ("SubjectHierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
    "tables": ("Tables", "vtkSlicerTablesLogic"),
    "plots": ("Plots", "vtkSlicerPlotsLogic"),
    "texts": ("Texts", "vtkSlicerTextsLogic"),
    "transforms": ("Transforms", "vtkSlicerTransformLogic"),
    "cameras": ("Cameras", "vtkSlicerCamerasModuleLogic"),
    "viewcontrollers": ("ViewControllers", "vtkSlicerViewControllersLogic"),
    "data": ("Data", "vtkSlicerDataModuleLogic"),
    "units": ("Units", "vtkSlicerUnitsLogic"),
}


class BenchApplication:
    """A scene that behaves as inside the application.

    Args:
        cache: a folder for what the scene unpacks; an .mrb cannot be read without one.

    Its scene and modules also become `slicer.mrmlScene` and `slicer.modules`, as code inside Slicer finds them.
    """

    def __init__(self, cache: Path):
        self.scene = slicer.vtkMRMLScene()
        self._give_cache(cache)
        self.appLogic = slicer.vtkSlicerApplicationLogic()
        self._add_singletons()
        self.appLogic.SetMRMLScene(self.scene)
        colors = self.appLogic.GetColorLogic()
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self.modules = self._make_modules()
        self.sliceLogics, self.viewLogics = vtk.vtkCollection(), vtk.vtkCollection()
        self.appLogic.SetSliceLogics(self.sliceLogics)
        self.appLogic.SetViewLogics(self.viewLogics)
        for factory in (
            slicer.vtkMRMLSliceViewDisplayableManagerFactory,
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
        ):
            factory.GetInstance().SetMRMLApplicationLogic(self.appLogic)
        self._links = [self._linked(slicer.vtkMRMLSliceLinkLogic()), self._linked(slicer.vtkMRMLViewLinkLogic())]
        slicer.mrmlScene, slicer.modules = self.scene, self.modules

    def close_scene(self) -> None:
        """What File > Close Scene does."""
        self.scene.Clear(False)

    def end(self) -> None:
        """Takes the scene away from all logics, so that nothing of it outlives the test."""
        for logic in [*self._links, *(m.logic() for m in vars(self.modules).values())]:
            logic.SetMRMLScene(None)
        self.appLogic.SetMRMLScene(None)
        self.scene.Clear(True)

    def _give_cache(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._cache, self._files = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
        self._cache.SetRemoteCacheDirectory(str(folder))
        self.scene.SetCacheManager(self._cache)
        self._files.SetCacheManager(self._cache)
        self.scene.SetDataIOManager(self._files)

    def _add_singletons(self) -> None:
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        layout = slicer.vtkMRMLLayoutNode()
        layout.SetSingletonTag("vtkMRMLLayoutNode")  # so it outlives File > Close Scene
        self.scene.AddNode(layout)

    def _make_modules(self) -> types.SimpleNamespace:
        """All logics are known to each other before any of them sees the scene; otherwise node classes stay unknown."""
        logics = {}
        for name, (registered, kind) in MODULES.items():
            logics[name] = getattr(slicer, kind)()
            self.appLogic.SetModuleLogic(registered, logics[name])
            logics[name].SetMRMLApplicationLogic(self.appLogic)
        for logic in logics.values():
            logic.SetMRMLScene(self.scene)
        return types.SimpleNamespace(**{name: _Module(logic) for name, logic in logics.items()})

    def _linked(self, logic):
        logic.SetMRMLApplicationLogic(self.appLogic)
        logic.SetMRMLScene(self.scene)
        return logic


class _Module:
    def __init__(self, logic):
        self._logic = logic

    def logic(self):
        return self._logic
