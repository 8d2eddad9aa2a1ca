"""Settings: preferences that Slicer keeps between sessions. Nothing about patients; a key only on request."""

from __future__ import annotations

import qt

GROUP = "ReplicaDetection"
SERVERS_KEPT = 8


def _get(name: str) -> str:
    return str(qt.QSettings().value(f"{GROUP}/{name}", "") or "")


def _set(name: str, value: str) -> None:
    settings = qt.QSettings()
    if value:
        settings.setValue(f"{GROUP}/{name}", value)
    else:
        settings.remove(f"{GROUP}/{name}")


def _text(name: str) -> property:
    return property(lambda self: _get(name), lambda self, value: _set(name, value))


class Settings:
    """Preferences in Slicer's settings file; "" for one that was never set."""

    reader = _text("Reader")
    resultFolder = _text("ResultFolder")
    reportFolder = _text("ReportFolder")
    blindingKey = _text("BlindingKey")

    @property
    def servers(self) -> list[str]:
        """Addresses that were connected to, the last one first."""
        return [url for url in _get("Servers").split("\n") if url]

    def addServer(self, url: str) -> None:
        known = [url, *(other for other in self.servers if other != url)]
        _set("Servers", "\n".join(known[:SERVERS_KEPT]))

    def key(self, url: str) -> str:
        """A key that the user chose to keep, "" if none. It is stored as it is: unencrypted."""
        return _get(self._keyName(url))

    def setKey(self, url: str, key: str) -> None:
        """Keeps a key, or forgets it with ""."""
        _set(self._keyName(url), key)

    @staticmethod
    def _keyName(url: str) -> str:
        # A slash would make groups of the address.
        return "Keys/" + url.replace("%", "%25").replace("/", "%2F")
