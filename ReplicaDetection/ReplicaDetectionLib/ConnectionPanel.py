"""ConnectionPanel: address and key of a server, with the addresses that were used before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ReplicaDetectionLib.Panel import Panel, quietly
from ReplicaDetectionLib.Settings import Settings
from ReplicaDetectionLib.Sources import Source
from ReplicaDetectionLib.Translation import _

START = "http://127.0.0.1:8000"


def serverSource(url: str, key: str) -> Source:
    """A source for an address. Imports the client late, when it is used."""
    from ReplicaDetectionLib.ServerSource import ServerSource

    return ServerSource(url, key)


class ConnectionPanel(Panel):
    """The key stays in this panel and in the client; it is stored only if the box is ticked, and never in a scene.

    Args:
        mayLeave: asks, where there is something to lose, before another source is opened.
    """

    def __init__(self, session: Any, settings: Settings, mayLeave: Callable[[], bool]):
        super().__init__(session)
        self.settings, self.mayLeave, self._asked = settings, mayLeave, ""
        self.ui.urlBox.addItems(settings.servers or [START])
        self._showKey(self.ui.urlBox.currentText)
        self.ui.urlBox.connect("currentTextChanged(QString)", self._showKey)
        self.ui.rememberBox.connect("toggled(bool)", self._remember)
        self.ui.connectButton.connect("clicked()", self.connectToServer)
        self.ui.keyEdit.connect("returnPressed()", self.connectToServer)
        session.sourceChanged.connect(self._connected)

    def connectToServer(self) -> None:
        url, key = self.ui.urlBox.currentText.strip().rstrip("/"), self.ui.keyEdit.text.strip()
        if not url:
            self.session.failed(_("Enter the address of a server, for example {example}.").format(example=START))
            return
        if "://" not in url:
            url = f"http://{url}"
        if not self.mayLeave():
            return
        self._asked = url
        self._remember(self.ui.rememberBox.checked)
        self.session.open(lambda task: serverSource(url, key))

    def _connected(self) -> None:
        """Moves an address that answered to the top of the list."""
        source = self.session.source
        if source is None or not source.remote or not self._asked:
            return
        url, self._asked = self._asked, ""
        self.settings.addServer(url)
        with quietly(self.ui.urlBox):
            self.ui.urlBox.clear()
            self.ui.urlBox.addItems(self.settings.servers)
        self._remember(self.ui.rememberBox.checked)

    def _showKey(self, url: str) -> None:
        """Shows the stored key of the address; a key is never offered to another address."""
        kept = self.settings.key(url.strip().rstrip("/"))
        self.ui.keyEdit.setText(kept)
        with quietly(self.ui.rememberBox):
            self.ui.rememberBox.setChecked(bool(kept))

    def _remember(self, keep: bool) -> None:
        url = self._asked or self.ui.urlBox.currentText.strip().rstrip("/")
        self.settings.setKey(url, self.ui.keyEdit.text.strip() if keep else "")
