"""CasePanel: the result of the case on screen, and its nearest training images under each measure."""

from __future__ import annotations

from typing import Any

from replica_detection.results.schema import Comparison, MeasureResult
from replica_detection.results.wording import reason
from ReplicaDetectionLib.Panel import VERDICT_COLOURS, Panel, dressTable, fillTable, number, selectRow
from ReplicaDetectionLib.Translation import _


class CasePanel(Panel):
    """A training image selected in the lower table is shown beside the synthetic one. Empty while blinded."""

    def __init__(self, session: Any):
        super().__init__(session)
        self._measure = ""
        for table in (self.ui.measureTable, self.ui.neighborTable):
            dressTable(table)
        self.ui.measureTable.connect("itemSelectionChanged()", self._chooseMeasure)
        self.ui.neighborTable.connect("itemSelectionChanged()", self._chooseNeighbor)
        session.caseChanged.connect(self._update)
        session.listChanged.connect(self._updateHeadline)
        self._update()

    @property
    def _comparison(self) -> Comparison | None:
        pair = self.session.pair
        return pair.comparison if pair is not None and not self.session.hidden else None

    def _update(self) -> None:
        comparison = self._comparison
        self._updateHeadline()
        self.ui.findings.setVisible(comparison is not None)
        if comparison is None:
            return
        rows = [
            (
                m.measure,
                m.verdict,
                number(m.value),
                number(m.ratio),
                number(m.p_value),
                number(m.q_value),
                m.nearest_training_id,
                m.level,
            )
            for m in comparison.measures
        ]
        fillTable(self.ui.measureTable, rows, (2, 3, 4, 5))
        names = [m.measure for m in comparison.measures]
        if self._measure not in names:
            self._measure = self._mostTelling(comparison)
        selectRow(self.ui.measureTable, names.index(self._measure) if self._measure in names else -1)
        self._showNeighbors()

    @staticmethod
    def _mostTelling(comparison: Comparison) -> str:
        """The measure of the smallest p value among those that name the pair's training image; the first of equals."""
        named = [m for m in comparison.measures if m.nearest_training_id == comparison.nearest_training_id]
        measures = named or list(comparison.measures)
        usual = [1.0 if m.p_value is None else m.p_value for m in measures]
        return measures[usual.index(min(usual))].measure if measures else ""

    def _updateHeadline(self) -> None:
        comparison, session = self._comparison, self.session
        if session.hidden:
            self._say(session.list.code(session.item), _("Names and scores are shown once your rating is saved."))
        elif comparison is None:
            waiting = session.item is not None and not session.blinded
            self._say(session.item.synthetic_id if waiting else "", "" if waiting else _("No case is open."))
        else:
            verdict = comparison.verdict or _("not compared yet")
            colour = VERDICT_COLOURS.get(verdict, "")
            words = f'<b style="color: {colour}">{verdict}</b>' if colour else f"<b>{verdict}</b>"
            if comparison.score is not None:
                words += " " + _("(score {score})").format(score=number(comparison.score))
            self._say(f"{_escaped(comparison.synthetic_id)}: {words}", "<br>".join(self._details(comparison)))

    def _say(self, headline: str, detail: str) -> None:
        self.ui.headlineLabel.setText(headline)
        self.ui.headlineLabel.setToolTip(headline)
        self.ui.headlineLabel.setVisible(bool(headline))
        self.ui.detailLabel.setText(detail)
        self.ui.detailLabel.setToolTip(detail)
        self.ui.detailLabel.setVisible(bool(detail))

    def _details(self, comparison: Comparison) -> list[str]:
        pair = self.session.pair
        why = [f"<b>{_escaped(reason(comparison))}</b>"] if comparison.reason else []
        lines = [_("Compared with: {training}").format(training=_escaped(pair.training.id))]
        if pair.training.id == comparison.nearest_training_id:
            lines[0] += " " + _("(the nearest match)")
        if comparison.levels_flagged:
            lines.append(_("Flagged levels: {levels}").format(levels=", ".join(comparison.levels_flagged)))
        if comparison.levels_differ:
            differ = _escaped("; ".join(comparison.levels_differ))
            lines.append(_("The levels name different training images: {differ}").format(differ=differ))
        return [*why, *lines, *(_escaped(w) for w in comparison.warnings)]

    def _result(self) -> MeasureResult | None:
        comparison = self._comparison
        measures = comparison.measures if comparison else ()
        return next((m for m in measures if m.measure == self._measure), None)

    def _chooseMeasure(self) -> None:
        row = self.ui.measureTable.currentRow()
        comparison = self._comparison
        if comparison is not None and 0 <= row < len(comparison.measures):
            self._measure = comparison.measures[row].measure
            self._showNeighbors()

    def _showNeighbors(self) -> None:
        result = self._result()
        neighbors = result.neighbors if result else ()
        lines = [_("Nearest training images by {measure}:").format(measure=self._measure)] if result else []
        if result is not None and result.details:
            said = ", ".join(f"{d.name} {d.text}" for d in result.details)
            lines.insert(0, f"{self._measure}: {_escaped(said)}")
        self.ui.neighborLabel.setText("<br>".join(lines))
        rows = [(str(n.rank), n.training_id, number(n.value), number(n.distance)) for n in neighbors]
        fillTable(self.ui.neighborTable, rows, (0, 2, 3))
        ids = [n.training_id for n in neighbors]
        shown = self.session.pair.training.id
        selectRow(self.ui.neighborTable, ids.index(shown) if shown in ids else -1)

    def _chooseNeighbor(self) -> None:
        row, result = self.ui.neighborTable.currentRow(), self._result()
        if result is not None and 0 <= row < len(result.neighbors):
            self.session.openMatch(result.neighbors[row].training_id)


def _escaped(text: str) -> str:
    """Escapes names, which come from files, so that they are not read as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
