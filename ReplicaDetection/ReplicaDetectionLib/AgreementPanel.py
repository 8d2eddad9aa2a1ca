"""AgreementPanel: the agreement of several readers, and the ratio thresholds from their ratings."""

from __future__ import annotations

from typing import Any

from replica_detection.results.schema import AgreementReport
from ReplicaDetectionLib.Panel import Panel, dressTable, fillTable, number
from ReplicaDetectionLib.Translation import _


class AgreementPanel(Panel):
    """The source computes it on request. A blinded reading hides it, because it depends on the ratings of others."""

    def __init__(self, session: Any):
        super().__init__(session)
        for table in (self.ui.pairsTable, self.ui.thresholdsTable):
            dressTable(table)
        self.ui.agreementButton.connect("clicked()", lambda: session.readAgreement(self.show))
        session.sourceChanged.connect(self._update)
        session.caseChanged.connect(self._update)
        session.activities.changed.connect(self._update)
        self._shownFor: Any = None
        # A source that does not say beforehand whom it tells.
        self._refusedBy: Any = None
        self._update()

    def show(self, report: AgreementReport | None) -> None:
        """Fills the tables; without a report, says that a reviewer may ask for it."""
        if report is None:
            self._refusedBy = self.session.source
            self._update()
            return
        self._shownFor = self.session.source
        self.ui.summaryLabel.setText(
            _("{readers} readers, {cases} cases rated, {replicas} of them replicas by consensus").format(
                readers=len(report.readers), cases=report.cases, replicas=report.replicas
            )
        )
        rows = [
            (
                _("{first} and {second}").format(first=p.readers[0], second=p.readers[1]),
                str(p.cases),
                number(p.percent_agreement, 1) + (" %" if p.percent_agreement is not None else ""),
                number(p.kappa, 2),
                number(p.weighted_kappa, 2),
            )
            for p in report.pairs
        ]
        fillTable(self.ui.pairsTable, rows, (1, 2, 3, 4))
        rows = [
            (
                t.measure,
                t.method,
                number(t.threshold),
                self._withInterval(t),
                number(t.sensitivity, 2),
                number(t.specificity, 2),
            )
            for t in report.thresholds
        ]
        fillTable(self.ui.thresholdsTable, rows, (2, 3, 4, 5))
        self.ui.agreementNote.setText(report.note)
        self._update()

    @staticmethod
    def _withInterval(threshold: Any) -> str:
        text = number(threshold.balanced_accuracy, 2)
        if threshold.low is None or threshold.high is None:
            return text
        return f"{text} ({number(threshold.low, 2)} to {number(threshold.high, 2)})"

    @staticmethod
    def _whyNot(blinded: bool, allowed: bool) -> str:
        if not allowed:
            return _("On this server readers see only their own ratings. A reviewer can see the agreement.")
        return _("Shown after the blinded reading.") if blinded else ""

    def _update(self) -> None:
        source, blinded = self.session.source, self.session.blinded
        idle = self.session.activities.current is None
        allowed = self.session.seesAllRatings and (source is None or source is not self._refusedBy)
        self.ui.agreementButton.setEnabled(source is not None and not blinded and idle and allowed)
        if blinded or source is not self._shownFor or source is None or not allowed:
            self._shownFor = None
            for table in (self.ui.pairsTable, self.ui.thresholdsTable):
                fillTable(table, [])
            self.ui.agreementNote.setText("")
            self.ui.summaryLabel.setText(self._whyNot(blinded, allowed))
        for widget in (self.ui.pairsTable, self.ui.thresholdsTable, self.ui.agreementNote):
            widget.setVisible(self._shownFor is not None)
