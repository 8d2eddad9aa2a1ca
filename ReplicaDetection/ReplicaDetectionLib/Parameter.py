"""Parameter: display settings that a scene keeps in the module's parameter node. Nothing about any case."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass
class Parameter:
    """Display settings; the defaults are those of a new scene."""

    layout: str = "rows"
    plane: str = "Axial"
    mode: str = "fade"
    opacity: float = 0.5
    linked: bool = True
    crosshair: bool = True
    surfaces: bool = True
    outlines: bool = True
    bothOutlines: bool = True
    heat: bool = True
    legend: bool = True

    @classmethod
    def read(cls, node: Any) -> Parameter:
        """From a vtkMRMLScriptedModuleNode; a missing or unreadable value keeps its default."""
        parameter = cls()
        for field in dataclasses.fields(cls):
            text, default = node.GetParameter(field.name), getattr(parameter, field.name)
            if not text:
                continue
            if isinstance(default, bool):
                setattr(parameter, field.name, text == "true")
            elif isinstance(default, float):
                try:
                    setattr(parameter, field.name, float(text))
                except ValueError:
                    continue
            else:
                setattr(parameter, field.name, text)
        return parameter

    def write(self, node: Any) -> None:
        """Into a vtkMRMLScriptedModuleNode, as one change."""
        modified = node.StartModify()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            node.SetParameter(field.name, str(value).lower() if isinstance(value, bool) else str(value))
        node.EndModify(modified)
