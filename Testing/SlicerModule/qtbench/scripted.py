"""The base classes of a scripted module, as far as this one uses them, under the names that Slicer gives them."""

from __future__ import annotations

import importlib
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import slicer


class ScriptedLoadableModule:
    """Describes a module; `parent` is the C++ module that takes title, texts and icon."""

    def __init__(self, parent: Any):
        self.parent, self.moduleName = parent, type(self).__name__

    def resourcePath(self, name: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / name)

    def runTest(self, msec: int = 100, **arguments: Any) -> None:
        test = getattr(importlib.import_module(self.__module__), self.moduleName + "Test")()
        test.messageDelay = msec
        test.runTest(**arguments)


class ScriptedLoadableModuleWidget:
    """Holds a module's panel; makes a parent of its own and sets itself up when it is given none."""

    def __init__(self, parent: Any = None):
        import qt

        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent or slicer.qMRMLWidget()
        if parent is None:
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, name: str) -> str:
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / name)

    def setup(self) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, name: str) -> None:
        if name == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    """Knows the module's singleton parameter node."""

    def __init__(self, parent: Any = None):
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(self.moduleName)
            node.SetName(self.moduleName)
            node = slicer.mrmlScene.AddNode(node)
        # Closing the scene keeps singletons but takes their attributes.
        node.SetAttribute("ModuleName", self.moduleName)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A test that also makes an object when no test method is named."""

    def __init__(self, methodName: str = "runTest"):
        super().__init__(methodName)

    def delayDisplay(self, message: str, msec: int | None = None) -> None:
        slicer.app.processEvents()


def register() -> None:
    """Puts the classes, and a `slicer.i18n` that does not translate, where `import` finds them."""
    base = types.ModuleType("slicer.ScriptedLoadableModule")
    names = [n for n in globals() if n.startswith("ScriptedLoadableModule")]
    vars(base).update({name: globals()[name] for name in names}, __all__=names)
    words = types.ModuleType("slicer.i18n")
    words.tr, words.translate = (lambda text: text), (lambda context, text: text)
    for module in (base, words):
        sys.modules[module.__name__] = module
        setattr(slicer, module.__name__.split(".")[1], module)
