"""ServerSource: a replica-detection server, through its client."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.errors import NotFoundError, ReplicaDetectionError, ServerError
from replica_detection.progress import Progress, silent
from replica_detection.readers.ratings import Rating
from replica_detection.registration.alignment import Alignment
from replica_detection.results.schema import (
    AgreementReport,
    Comparison,
    Histogram,
    RatingReceipt,
    Status,
    Worklist,
    WorklistItem,
)
from replica_detection.surfaces.mesh import Mesh
from ReplicaDetectionLib.CasePair import CasePair, PairSurfaces
from ReplicaDetectionLib.Sources import Cancelled, Source, Steps, never

if TYPE_CHECKING:
    from ReplicaDetectionLib.PairMaking import CommonGrid, ReadImage

#: What the server calls a training case among its images.
TRAINING = "train:"
# What the server answers where a case has no mask, or an empty one.
_NO_MASK = (404, 409)


class ServerSource(Source):
    """Args:
        url: address of the server.
        key: API key, "" for a server without.

    Raises:
        ConfigurationError: an address or key that cannot be used. Nothing is sent before the first call.
    """

    comparesImages = True
    remote = True

    def __init__(self, url: str, key: str = ""):
        from replica_detection.client import ReplicaClient

        self.client = ReplicaClient(url, key or None)
        self.name = self.client.url
        self._grids: dict[str, CommonGrid] = {}

    def status(self) -> Status:
        return self.client.status()

    def worklist(
        self,
        *,
        offset: int = 0,
        limit: int = 50,
        sort: str = "score",
        descending: bool = True,
        verdicts: Sequence[str] = (),
        rated: str = "any",
        reader: str = "",
        search: str = "",
    ) -> Worklist:
        return self.client.worklist_page(
            offset,
            limit,
            sort=sort,
            descending=descending,
            verdict=verdicts,
            rated=rated,
            reader=reader or None,
            search=search or None,
        )

    def next(self, reader: str = "", after: str = "") -> WorklistItem | None:
        try:
            return self.client.next_case(reader=reader or None, after=after or None)
        except NotFoundError:
            return None

    def comparison(self, syntheticId: str, k: int = 10) -> Comparison:
        return self.client.comparison(syntheticId, k=k)

    def pair(
        self, syntheticId: str, trainingId: str = "", *, progress: Progress = silent, cancelled: Cancelled = never
    ) -> CasePair:
        step = Steps(5, progress, cancelled)
        step("Comparing")
        comparison = self.client.comparison(syntheticId, cancel=cancelled)
        trainingId = trainingId or comparison.nearest_training_id
        with tempfile.TemporaryDirectory(prefix="replica-detection-") as name:
            folder = Path(name)
            step("Downloading the synthetic image")
            synthetic = self._image(syntheticId, syntheticId, comparison, folder, cancelled)
            step("Downloading the training image")
            training = self._image(f"{TRAINING}{trainingId}", trainingId, comparison, folder, cancelled)
            step("Downloading surfaces")
            surfaces, problem = self._surfaces(
                synthetic, training, _alignment(comparison, trainingId), folder, cancelled
            )
        step("Done")
        return _pair(comparison, synthetic, training, surfaces, problem)

    def histograms(self) -> list[Histogram]:
        return list(self.client.histograms())

    def saveRating(self, rating: Rating) -> RatingReceipt:
        return self.client.rate(
            rating.synthetic_id,
            rating.training_id,
            rating.rating,
            comment=rating.comment,
            blinded=rating.blinded,
            seconds=rating.seconds,
            reader=rating.reader,
            index_version=rating.index_version,
            rating_id=rating.rating_id,
            created=rating.created,
        )

    def ratings(self, reader: str = "", syntheticId: str = "") -> list[Rating]:
        return list(self.client.ratings(reader=reader or None, synthetic_id=syntheticId or None))

    def agreement(self) -> AgreementReport:
        return self.client.agreement()

    def compareImage(self, path: str, mask: str = "", k: int = 10) -> Comparison:
        return self.client.compare_file(path, mask=mask or None, k=k)

    def pairWith(self, comparison: Comparison, image: str, trainingId: str = "", mask: str = "") -> CasePair:
        from ReplicaDetectionLib.PairMaking import readFile, surfacesOf

        trainingId = trainingId or comparison.nearest_training_id
        synthetic = readFile(image, self._grid(comparison), comparison.synthetic_id, mask)
        with tempfile.TemporaryDirectory(prefix="replica-detection-") as folder:
            training = self._image(
                f"{TRAINING}{trainingId}", trainingId, comparison, Path(folder), never, masked=bool(mask)
            )
        surfaces, problem = surfacesOf(synthetic, training, _alignment(comparison, trainingId))
        return _pair(comparison, synthetic, training, surfaces, problem)

    # --------------------------------------------------------------------------------------------------------- inside

    def _grid(self, comparison: Comparison) -> CommonGrid:
        """The grid of the index that the comparison was made with; asked once for each index."""
        from ReplicaDetectionLib.PairMaking import CommonGrid

        if comparison.index_version not in self._grids:
            index = self.client.status().index
            if index is None:
                raise ReplicaDetectionError(f"{self.name}: the server has no training index yet")
            known = index.preparation
            self._grids[comparison.index_version] = (
                CommonGrid.named(index.profile, index.grid, index.spacing_mm) if known is None else CommonGrid.of(known)
            )
        return self._grids[comparison.index_version]

    def _image(
        self,
        remoteId: str,
        caseId: str,
        comparison: Comparison,
        folder: Path,
        cancelled: Cancelled,
        *,
        masked: bool = False,
    ) -> ReadImage:
        from ReplicaDetectionLib.PairMaking import readFile, withMask

        # A folder of its own for each: the client names the file as the server does.
        target, grid = Path(tempfile.mkdtemp(dir=folder)), self._grid(comparison)
        read = readFile(self.client.download_image(remoteId, target, cancel=cancelled), grid, caseId)
        if not masked:
            return read
        try:
            return withMask(read, self.client.download_mask(remoteId, target, cancel=cancelled), grid)
        except ServerError as error:
            if error.status not in _NO_MASK:
                raise
            return read

    def _surfaces(
        self,
        synthetic: ReadImage,
        training: ReadImage,
        alignment: Alignment | None,
        folder: Path,
        cancelled: Cancelled,
    ) -> tuple[PairSurfaces | None, str]:
        from ReplicaDetectionLib.PairMaking import placementOf, withDistances

        ids = synthetic.image.id, training.image.id
        try:
            (first, forth), (second, back) = (
                readSurface(self.client.surface(*ids, folder / f"{of}.vtp", of=of, cancel=cancelled))
                for of in ("synthetic", "training")
            )
        except ServerError as error:
            if error.status not in _NO_MASK:
                raise
            return None, error.detail or str(error)
        return withDistances(first, second, placementOf(synthetic, training), alignment, (forth, back)), ""


def readSurface(path: Path) -> tuple[Mesh, np.ndarray]:
    """A mesh in mm RAS+ and the distance at each of its points, from a .vtp file.

    Raises:
        ReplicaDetectionError: it holds no surface with distances.
    """
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    from ReplicaDetectionLib.Nodes import DISTANCE

    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    data = reader.GetOutput()
    distances = data.GetPointData().GetArray(DISTANCE)
    if not data.GetNumberOfPoints() or distances is None:
        raise ReplicaDetectionError(f"{path.name}: the surface holds no distances ('{DISTANCE}')")
    points = vtk_to_numpy(data.GetPoints().GetData()).astype(np.float64)
    triangles = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).astype(np.int64).reshape(-1, 3)
    return Mesh(points, triangles), vtk_to_numpy(distances).astype(np.float64)


def _alignment(comparison: Comparison, trainingId: str) -> Alignment | None:
    """The one that was found, which is that of the nearest training case."""
    return comparison.alignment if trainingId == comparison.nearest_training_id else None


def _pair(
    comparison: Comparison,
    synthetic: ReadImage,
    training: ReadImage,
    surfaces: PairSurfaces | None,
    problem: str,
) -> CasePair:
    from ReplicaDetectionLib.PairMaking import placementOf

    placement = placementOf(synthetic, training)
    alignment = _alignment(comparison, training.image.id)
    return CasePair(comparison, synthetic.image, training.image, placement, surfaces, problem, alignment)
