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
    """On an instance the property's value, as in PythonQt; on the class what PySide6 has (`QTimer.singleShot`)."""

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


def with_habits(cls: type) -> type:
    """Gives a class `connect` by signature, and refuses attributes that it does not have.

    They are put on the class itself: PySide6 looks no further for `connect`.
    """

    def set_known_attribute(self: Any, name: str, value: Any) -> None:
        # As PythonQt: a misspelled property of a C++ object is an error, not a new attribute.
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        super(cls, self).__setattr__(name, value)

    cls.connect, cls.disconnect, cls.__setattr__ = _connect, _disconnect, set_known_attribute
    return cls


def _connect(self: Any, *arguments: Any) -> Any:
    signal = _signal_of(self, arguments)
    return signal.connect(arguments[1]) if signal else QtCore.QObject.connect(*arguments)


def _disconnect(self: Any, *arguments: Any) -> Any:
    signal = _signal_of(self, arguments)
    return signal.disconnect(*arguments[1:]) if signal else QtCore.QObject.disconnect(*arguments)


def _signal_of(source: Any, arguments: tuple[Any, ...]) -> Any:
    # PySide6's own signals call connect(source, "2signal()", ...) on the object.
    if not arguments or not isinstance(arguments[0], str) or arguments[0][:1].isdigit():
        return None
    signature = QtCore.QMetaObject.normalizedSignature(arguments[0]).data().decode()
    if source.metaObject().indexOfSignal(signature) < 0:
        raise ValueError(f"{source.metaObject().className()} has no signal {arguments[0]}")
    return getattr(source, signature.split("(", 1)[0])


def flat_namespace() -> types.ModuleType:
    """The module `qt`: every class of QtCore, QtGui, QtWidgets and QtNetwork with PythonQt's habits."""
    for module in MODULES:
        for name, cls in _classes(module):
            if isinstance(cls, type) and issubclass(cls, QtCore.QObject) and cls.__name__ == name:
                _make_properties(cls)
    QtCore.QObject.name = _QtProperty("objectName", None)
    QtCore.QObject.className = lambda self: self.metaObject().className()
    qt = types.ModuleType("qt")
    for module in MODULES:
        for name, value in _classes(module):
            setattr(qt, name, _with_habits(name, value))
    qt.Signal, qt.Slot = QtCore.Signal, QtCore.Slot
    return qt


def _classes(module: types.ModuleType) -> list[tuple[str, Any]]:
    """By `dir`, for PySide6 makes its classes only when they are asked for."""
    return [(name, getattr(module, name)) for name in dir(module) if name.startswith("Q")]


def _with_habits(name: str, value: Any) -> Any:
    is_object = isinstance(value, type) and issubclass(value, QtCore.QObject) and value.__name__ == name
    if not is_object or name in _AS_THEY_ARE:
        return value
    try:
        return with_habits(type(name, (value,), {}))
    except TypeError:  # some classes cannot be derived from
        return value
