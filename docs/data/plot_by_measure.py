"""`python docs/data/plot_by_measure.py`: draws docs/images/by_measure.png from by_measure.csv beside this file."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
# In the order of their levels, so that neighbours in the picture see the same thing.
LEVELS = {
    "voxel": ("mae", "rmse", "ssim"),
    "feature": ("embedding_cosine", "embedding_rmse", "embedding_pearson", "memorization_index", "slice_votes"),
    "segmentation": ("dice", "asd", "asd_surfel", "hd95", "cldice"),
    "aligned": ("ncc_aligned", "lncc_aligned", "dice_aligned"),
}


def read_table(path: Path) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """Returns changes, measures, and the columns `flagged`, `right_match`, `auroc`, each (changes, measures)."""
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    changes = list(dict.fromkeys(row["change"] for row in rows))
    measures = [measure for group in LEVELS.values() for measure in group]
    cells = {(row["change"], row["measure"]): row for row in rows}
    return (
        changes,
        measures,
        {
            column: np.array([[float(cells[c, m][column] or "nan") for m in measures] for c in changes])
            for column in ("flagged", "right_match", "auroc")
        },
    )


def draw(path: Path, output: Path) -> Path:
    """Draws the share flagged as colours and figures, a row for each change and a column for each measure."""
    changes, measures, columns = read_table(path)
    shares = columns["flagged"]
    figure, axes = plt.subplots(figsize=(9.6, 8.2), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.2g}", ha="center", va="center", fontsize=8, color="w" if share > 0.6 else "k")
    axes.set_yticks(range(len(changes)), ["new scans (not copies)" if c == "novel" else c for c in changes])
    axes.set_xticks(range(len(measures)), measures, rotation=55, ha="right", rotation_mode="anchor")
    axes.axhline(changes.index("novel") - 0.5, color="k", linewidth=2)
    edges = np.cumsum([len(group) for group in LEVELS.values()])
    for edge, (level, group) in zip(edges, LEVELS.items(), strict=True):
        axes.axvline(edge - 0.5, color="k", linewidth=1)
        axes.text(edge - 0.5 - len(group) / 2, -0.75, level, ha="center", va="bottom", weight="bold")
    axes.set_title("Share of images flagged by one measure alone (p at most 0.05)", pad=24)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(output, dpi=110, pil_kwargs={"optimize": True})
    plt.close(figure)
    return output


if __name__ == "__main__":
    print(draw(HERE / "by_measure.csv", HERE.parent / "images" / "by_measure.png"))
