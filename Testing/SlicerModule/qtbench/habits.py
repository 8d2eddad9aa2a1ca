"""PythonQt's habits on PySide6 classes: properties are attributes, signals connect by their signature."""

from __future__ import annotations

import types
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

MODULES = (QtCore, QtGui, QtWidgets, QtNetwork)
# C++ looks these up as virtual functions of the Python type; they stay functions, as in PythonQt.
_KEPT = {"sizeHint", "minimumSizeHint"}
# PySide6 cannot replace these; nothing in a module subclasses them.
_AS_THEY_ARE = {"QObject", "QCoreApplication", "QGuiApplication", "QApplication"}


class _QtProperty:
    """On an instance the property's value, as in PythonQt; on the class what PySide6 has there (`QTimer.singleShot`)."""

    def __init__(self, name: str, original: Any):
        self.name, self.original = name, original

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.original if instance is None else instance.property(self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        instance.setProperty(self.name, value)


def _make_properties(cls: type) -> None:
    meta = cls.staticMetaObject
    for i in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(i).name()
        if name not in _KEPT:
            setattr(cls, name, _QtProperty(name, getattr(cls, name, None)))


class PythonQtHabits:
    """Mixed into every class of `qt`: `connect` by signature, and no attributes that C++ does not have."""

    def connect(self, *arguments: Any) -> Any:
        signal = self._signal_of(arguments)
        return signal.connect(arguments[1]) if signal else QtCore.QObject.connect(*arguments)

    def disconnect(self, *arguments: Any) -> Any:
        signal = self._signal_of(arguments)
        return signal.disconnect(*arguments[1:]) if signal else QtCore.QObject.disconnect(*arguments)

    def _signal_of(self, arguments: tuple[Any, ...]) -> Any:
        # Python signals of PySide6 call connect(source, "2signal()", ...) on the object: that form is PySide6's own.
        if not arguments or not isinstance(arguments[0], str) or arguments[0][:1].isdigit():
            return None
        signature = QtCore.QMetaObject.normalizedSignature(arguments[0]).data().decode()
        if self.metaObject().indexOfSignal(signature) < 0:
            raise ValueError(f"{self.metaObject().className()} has no signal {arguments[0]}")
        name, parameters = signature.rstrip(")").split("(", 1)
        signal = getattr(self, name)
        try:
            return signal[tuple(parameters.split(","))] if parameters else signal
        except (IndexError, KeyError):
            return signal

    def __setattr__(self, name: str, value: Any) -> None:
        # PythonQt refuses new attributes on C++ objects, which catches misspelled properties.
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        super().__setattr__(name, value)


def flat_namespace() -> types.ModuleType:
    """The module `qt`: every class of QtCore, QtGui, QtWidgets and QtNetwork with PythonQt's habits."""
    for module in MODULES:
        for name, cls in list(vars(module).items()):
            if isinstance(cls, type) and issubclass(cls, QtCore.QObject) and cls.__name__ == name:
                _make_properties(cls)
    QtCore.QObject.name = _QtProperty("objectName", None)
    QtCore.QObject.className = lambda self: self.metaObject().className()
    qt = types.ModuleType("qt")
    for module in MODULES:
        for name, value in vars(module).items():
            if name.startswith("Q"):
                setattr(qt, name, _with_habits(name, value))
    qt.Signal, qt.Slot = QtCore.Signal, QtCore.Slot
    return qt


def _with_habits(name: str, value: Any) -> Any:
    is_object = isinstance(value, type) and issubclass(value, QtCore.QObject) and value.__name__ == name
    if not is_object or name in _AS_THEY_ARE:
        return value
    try:
        return type(name, (PythonQtHabits, value), {})
    except TypeError:  # some classes cannot be derived from
        return value
