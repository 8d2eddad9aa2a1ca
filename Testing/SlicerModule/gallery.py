"""Pictures of the module's views for the documentation, from what `replica-detection demo` left.

python Testing/SlicerModule/gallery.py DEMO docs/images
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "ReplicaDetection")]

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from bench.application import BenchApplication  # noqa: E402
from bench.layouts import LayoutManager  # noqa: E402
from bench.views import draw_chart  # noqa: E402
from replica_detection.preparation.grids import orientation_of  # noqa: E402
from replica_detection.registration.alignment import Alignment  # noqa: E402
from ReplicaDetectionLib.CasePair import CasePair  # noqa: E402
from ReplicaDetectionLib.FolderSource import FolderSource  # noqa: E402
from ReplicaDetectionLib.Logic import ReplicaDetectionLogic  # noqa: E402
from ReplicaDetectionLib.PairMaking import withDistances  # noqa: E402

MOST_BYTES = 140_000
SIZE = (1440, 640)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the output folder of `replica-detection demo`")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    vessels = FolderSource(arguments.demo / "tof_mra" / "result")
    truth = _truth(arguments.demo / "tof_mra" / "data")
    with tempfile.TemporaryDirectory() as folder:
        app = BenchApplication(Path(folder))
        layouts = LayoutManager(app, SIZE)
        logic = ReplicaDetectionLogic(app.scene, app.appLogic)

        def save(name: str, picture: np.ndarray, captions: list[tuple[int, int, str]] | None = None) -> None:
            _save(arguments.output / f"slicer_{name}.jpg", picture, captions or [])

        logic.layout.set("rows")
        logic.showPair(vessels.pair(truth["elastic"]))
        logic.surfaces.jumpToLargest()
        rows = [(8, 8, "synthetic"), (8, SIZE[1] // 2 + 8, "nearest training scan")]
        save("rows", layouts.picture(), rows)

        pair = _mirrored(vessels.pair(truth["noise"]))
        logic.showPair(pair)
        logic.placement.setMode("compared")
        logic.surfaces.fitRange()
        before = layouts.picture()
        logic.placement.setMode("aligned")
        after = layouts.picture()
        half = SIZE[1] // 2
        both = np.concatenate([before[half:], after[half:]])
        save(
            "aligned", both, [(8, 8, "training scan, as compared"), (8, half + 8, f"aligned: {logic.placement.words}")]
        )
        item = vessels.worklist().items[2]
        chart = logic.plot.show({h.measure: h for h in vessels.histograms()}["asd"], item.synthetic_id)
        save("ratios", draw_chart(chart, (720, 380)))
        logic.clear()
        layouts.close()
        app.end()


def _truth(data: Path) -> dict[str, str]:
    """A synthetic case for each kind of replica."""
    lines = (data / "truth.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {kind: case for case, _, _, kind in (line.split(",") for line in lines)}


def _mirrored(pair: CasePair) -> CasePair:
    """The pair as if the generator had mirrored its copy left-right, with the alignment that undoes it."""
    axis = int(np.flatnonzero(orientation_of(pair.synthetic.affine)[:, 0] == 0)[0])
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, pair.synthetic.array.shape[axis] - 1
    mirror = pair.synthetic.affine @ flip @ np.linalg.inv(pair.synthetic.affine)
    matrix = mirror @ pair.placement
    alignment = Alignment(
        tuple(map(tuple, matrix.tolist())), (True, False, False), 1.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.98, 0.5, 1.0
    )
    surface = pair.surfaces.synthetic
    points = surface.points @ mirror[:3, :3].T + mirror[:3, 3]
    surface = replace(surface, points=points, triangles=surface.triangles[:, ::-1])
    surfaces = withDistances(surface, pair.surfaces.training, pair.placement, alignment)
    array = np.ascontiguousarray(np.flip(pair.synthetic.array, axis))
    return replace(pair, synthetic=replace(pair.synthetic, array=array), surfaces=surfaces, alignment=alignment)


def _save(path: Path, picture: np.ndarray, captions: list[tuple[int, int, str]]) -> None:
    image = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    for x, y, text in captions:
        pen.rectangle(pen.textbbox((x + 4, y + 4), text, font=font), fill=(20, 22, 28))
        pen.text((x + 4, y + 4), text, font=font, fill=(255, 255, 255))
    for quality in (90, 84, 78, 70, 60):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= MOST_BYTES:
            break
    path.write_bytes(data.getvalue())
    print(f"{path}: {data.tell() // 1000} kB")


if __name__ == "__main__":
    main()
