"""Slice, 3D and plot views that draw MRML nodes off-screen, with Slicer's own displayable managers."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
)
THREED_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
)


class _View:
    """A window with Slicer's managers in it. `picture` is (H, W, 3) uint8, first row on top."""

    def __init__(self, app, size: tuple[int, int]):
        self.app = app
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        # Software rendering with multisamples drops translucent actors.
        self.window.SetMultiSamples(0)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.resize(size)
        self.interactor.Initialize()
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()

    def resize(self, size: tuple[int, int]) -> None:
        self.window.SetSize(*size)
        self.interactor.SetSize(*size)

    def renderWindow(self):
        return self.window

    def picture(self) -> np.ndarray:
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
        return np.ascontiguousarray(pixels[::-1, :, :3])

    def close(self) -> None:
        self.managers.SetMRMLDisplayableNode(None)
        self.window.Finalize()

    def _start(self, factory, names) -> None:
        for name in names:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.managers.Initialize(factory, self.renderer)


class SliceView(_View):
    """A vtkMRMLSliceNode with its logic."""

    def __init__(self, app, tag: str, size: tuple[int, int]):
        super().__init__(app, size)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window.SetNumberOfLayers(2)
        self.window.SetAlphaBitPlanes(1)
        overlay = vtk.vtkRenderer()
        overlay.SetLayer(1)
        overlay.GetActiveCamera().ParallelProjectionOn()
        self.window.AddRenderer(overlay)
        # 2D actors are drawn in the order in which they came: the image has to be there before the managers' ones.
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._actor.VisibilityOff()
        self.renderer.AddViewProp(self._actor)
        self._start(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), SLICE_MANAGERS)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(app.appLogic)
        app.sliceLogics.AddItem(self.logic)
        self.logic.SetMRMLScene(app.scene)
        self.node = app.scene.GetSingletonNode(tag, "vtkMRMLSliceNode") or self.logic.AddSliceNode(tag)
        self.logic.SetSliceNode(self.node)
        self.composite = self.logic.GetSliceCompositeNode()
        self.managers.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size)

    def resize(self, size: tuple[int, int]) -> None:
        super().resize(size)
        if hasattr(self, "logic"):
            self.logic.ResizeSliceNode(*size)

    def picture(self) -> np.ndarray:
        image = self.logic.GetImageDataConnection()
        if image is not None:
            self._mapper.SetInputConnection(image)
        self._actor.SetVisibility(image is not None)
        return super().picture()

    def pixel_of(self, ras) -> tuple[int, int]:
        """(row, column) of a point in mm RAS+."""
        to_ras = self.node.GetXYToRAS()
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(to_ras, inverse)
        x, y = inverse.MultiplyPoint((*ras, 1.0))[:2]
        return self.window.GetSize()[1] - 1 - round(y), round(x)

    def close(self) -> None:
        self.app.sliceLogics.RemoveItem(self.logic)
        super().close()
        self.logic.SetMRMLScene(None)


class ThreeDView(_View):
    """A vtkMRMLViewNode with its logic and camera."""

    def __init__(self, app, tag: str, size: tuple[int, int]):
        super().__init__(app, size)
        self.renderer.SetUseDepthPeeling(1)
        self._start(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), THREED_MANAGERS)
        self.style = slicer.vtkMRMLThreeDViewInteractorStyle()
        self.style.SetDisplayableManagers(self.managers)
        self.style.SetInteractor(self.interactor)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(app.appLogic)
        app.viewLogics.AddItem(self.logic)
        self.logic.SetMRMLScene(app.scene)
        # A second node with this tag would be copied into the first and be without a scene.
        assert app.scene.GetSingletonNode(tag, "vtkMRMLViewNode") is None, tag
        self.node = self.logic.AddViewNode(tag)
        self.managers.SetMRMLDisplayableNode(self.node)

    def camera(self):
        manager = self.managers.GetDisplayableManagerByClassName("vtkMRMLCameraDisplayableManager")
        return manager.GetCameraNode()

    def pixel_of(self, ras) -> tuple[int, int]:
        """(row, column) of a point in mm RAS+."""
        self.renderer.SetWorldPoint(*ras, 1.0)
        self.renderer.WorldToDisplay()
        x, y, _ = self.renderer.GetDisplayPoint()
        return self.window.GetSize()[1] - 1 - round(y), round(x)

    def close(self) -> None:
        self.app.viewLogics.RemoveItem(self.logic)
        super().close()
        self.logic.SetMRMLScene(None)


class PlotView:
    """Draws the chart of a vtkMRMLPlotViewNode with VTK; Slicer itself draws it in a Qt widget."""

    def __init__(self, app, tag: str, size: tuple[int, int]):
        self.app, self.size = app, size
        self.node = app.scene.GetSingletonNode(tag, "vtkMRMLPlotViewNode")
        if self.node is None:
            self.node = slicer.vtkMRMLPlotViewNode()
            self.node.SetSingletonTag(tag)
            self.node.SetLayoutName(tag)
            self.node = app.scene.AddNode(self.node)

    def resize(self, size: tuple[int, int]) -> None:
        self.size = size

    def picture(self) -> np.ndarray:
        chart = self.node.GetPlotChartNode()
        if chart is None:
            return np.full((self.size[1], self.size[0], 3), 255, np.uint8)
        return draw_chart(chart, self.size)

    def close(self) -> None:
        pass


def draw_chart(node, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of a vtkMRMLPlotChartNode."""
    view = vtk.vtkContextView()
    window = view.GetRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    view.GetRenderer().SetBackground(1, 1, 1)
    chart = vtk.vtkChartXY()
    view.GetScene().AddItem(chart)
    chart.SetTitle(node.GetTitle() or "")
    chart.SetShowLegend(node.GetLegendVisibility())
    for axis, title in ((vtk.vtkAxis.BOTTOM, node.GetXAxisTitle()), (vtk.vtkAxis.LEFT, node.GetYAxisTitle())):
        chart.GetAxis(axis).SetTitle(title or "")
    for i in range(node.GetNumberOfPlotSeriesNodes()):
        _add_series(chart, node.GetNthPlotSeriesNode(i))
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    window.Finalize()
    return np.ascontiguousarray(pixels[::-1, :, :3])


def _add_series(chart, series) -> None:
    kind = slicer.vtkMRMLPlotSeriesNode
    bars = series.GetPlotType() in (kind.PlotTypeBar, kind.PlotTypeScatterBar)
    points = series.GetMarkerStyle() != kind.MarkerStyleNone and series.GetLineStyle() == kind.LineStyleNone
    plot = chart.AddPlot(vtk.vtkChart.BAR if bars else vtk.vtkChart.POINTS if points else vtk.vtkChart.LINE)
    plot.SetInputData(series.GetTableNode().GetTable(), series.GetXColumnName(), series.GetYColumnName())
    plot.SetLabel(series.GetName())
    plot.SetColor(*(round(255 * c) for c in series.GetColor()), 255)
    plot.SetWidth(series.GetLineWidth())
    if series.GetLineStyle() == kind.LineStyleDash:
        plot.GetPen().SetLineType(vtk.vtkPen.DASH_LINE)
    if points:
        plot.SetMarkerSize(series.GetMarkerSize())
