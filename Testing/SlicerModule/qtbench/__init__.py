"""A stand-in for the Qt half of Slicer, on PySide6, so that the module's widgets run where the application is not.

    application = qtbench.install(scene, modules)      # afterwards `import qt, ctk, slicer` work as in Slicer

What it bridges: one flat `qt` namespace, Qt properties as attributes, `obj.connect("clicked()", f)`, the CTK and qMRML
classes that the module's .ui files name, `slicer.app`, and the base classes of a scripted module. What it cannot show:
looks of the real CTK widgets, and what PythonQt does with ownership, overloads and threads.
"""

from qtbench.application import Application
from qtbench.installation import install
from qtbench.placeholders import CUSTOM_WIDGETS

__all__ = ["CUSTOM_WIDGETS", "Application", "install"]
