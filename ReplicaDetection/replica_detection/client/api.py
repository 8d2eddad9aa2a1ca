"""ReplicaClient: one method for each function of a server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from replica_detection.client.address import Address
from replica_detection.client.cancelling import Cancel, never, pause
from replica_detection.client.multipart import Multipart
from replica_detection.client.series import ARCHIVE, in_one_file
from replica_detection.client.transport import Call, Transport
from replica_detection.io.paths import file_stem
from replica_detection.progress import Progress, silent
from replica_detection.readers.ratings import Rating
from replica_detection.results import schema

T = TypeVar("T")


class ReplicaClient:
    """A server, by its address.

    Args:
        url: such as https://gpu-server:8000, with a path where the server stands behind a gateway.
        key: API key or token; sent to this address only, over plain http only within this machine.
        timeout: seconds without a byte from the server, for what it has ready.
        long_timeout: the same for what it must compute first.
        ca_file: certificate authorities to trust (PEM) in place of the machine's; certificates are always verified.
        retries: number of times that a call is repeated when the server is busy (after the pause that it asks for), or
            when the connection broke and the call may be sent again.
        allow_insecure: lets the key travel over plain http to another machine.

    Raises:
        ConfigurationError: an address or key that cannot be used.
        InputError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        long_timeout: float = 600.0,
        ca_file: Path | str | None = None,
        retries: int = 4,
        allow_insecure: bool = False,
    ):
        authorities = None if ca_file is None else Path(ca_file)
        self._transport = Transport(Address(url, key, ca_file=authorities, allow_insecure=allow_insecure), retries)
        self.timeout, self.long_timeout = timeout, long_timeout

    @property
    def url(self) -> str:
        return self._transport.address.url

    def __repr__(self) -> str:
        return f"ReplicaClient({self.url!r})"

    # ----------------------------------------------------------------------------------------------- server and cases

    def status(self) -> schema.Status:
        """The server at a glance. Raises UnexpectedAnswerError where it speaks another version than this client."""
        data = self._get("/status")
        version = data.get("api_version") if isinstance(data, dict) else None
        if version != schema.API_VERSION:
            raise self._transport.not_understood(f"it speaks version {version!r}, this program {schema.API_VERSION}")
        return self._read(schema.Status, data)

    def worklist(self, *, page: int = 200, **filters: Any) -> Iterator[schema.WorklistItem]:
        """All cases that pass the filters, each once, fetched page by page; for `filters` see `worklist_page`."""
        seen: set[str] = set()
        offset = 0
        while True:
            found = self.worklist_page(offset, page, **filters)
            # A case that was scored meanwhile may have moved to a later page.
            for item in found.items:
                if item.synthetic_id not in seen:
                    seen.add(item.synthetic_id)
                    yield item
            offset += len(found.items)
            if not found.items or offset >= found.total:
                return

    def worklist_page(
        self,
        offset: int = 0,
        limit: int = 50,
        *,
        sort: str | None = None,
        descending: bool | None = None,
        verdict: Sequence[str] = (),
        rated: str | None = None,
        reader: str | None = None,
        search: str | None = None,
    ) -> schema.Worklist:
        """One page of the worklist, by falling score unless told otherwise.

        Args:
            sort: score, synthetic_id, verdict or rating.
            verdict: only these.
            rated: any, yes or no: whether `reader` (with a key: its owner) has rated the case.
            search: part of the case's name.
        """
        query: dict[str, Any] = {"offset": offset, "limit": limit, "sort": sort, "descending": descending}
        query |= {"verdict": list(verdict), "rated": rated, "reader": reader, "search": search}
        return self._read(schema.Worklist, self._get("/worklist", **query))

    def next_case(self, *, reader: str | None = None, after: str | None = None) -> schema.WorklistItem:
        """The most replica-like case without a rating by this reader. Raises NotFoundError where none is left."""
        return self._read(schema.WorklistItem, self._get("/next", reader=reader, after=after))

    # ----------------------------------------------------------------------------------------------------- comparisons

    def comparison(self, synthetic_id: str, *, k: int = 10, cancel: Cancel = never) -> schema.Comparison:
        """A case of the worklist against the training cohort, with the k nearest under each measure."""
        path = f"/cases/{_segment(synthetic_id)}/comparison"
        return self._read(schema.Comparison, self._get(path, slow=True, cancel=cancel, k=k))

    def compare_file(
        self,
        image: Path | str,
        *,
        mask: Path | str | None = None,
        k: int = 10,
        progress: Progress = silent,
        cancel: Cancel = never,
    ) -> schema.Comparison:
        """A local image against the training cohort. The server does not keep the image.

        `image` is a file, or the folder or ZIP file of one DICOM series. No name is sent, only an extension. Raises
        InputError for a file that cannot be read or sent alone.
        """
        with in_one_file(Path(image), cancel) as file:
            files = {"file": file} | ({} if mask is None else {"mask": Path(mask)})
            answer = self._call("POST", "/compare", {"k": k}, Multipart(files, progress), slow=True, cancel=cancel)
        return self._read(schema.Comparison, answer)

    def histograms(self) -> tuple[schema.Histogram, ...]:
        """Ratios of the scored set and of the null for each measure; with `measure` "" the overall evidence."""
        return self._read_all(schema.Histogram, self._get("/histograms", slow=True))

    def surface_statistics(self, synthetic_id: str, training_id: str) -> schema.SurfaceReply:
        """Distances in mm between the surfaces of a pair's masks, both ways."""
        path = f"/surfaces/{_segment(synthetic_id)}/{_segment(training_id)}/statistics"
        return self._read(schema.SurfaceReply, self._get(path, slow=True))

    # ------------------------------------------------------------------------------------------------------------ files

    def download_image(
        self, case_id: str, target: Path | str, *, progress: Progress = silent, cancel: Cancel = never
    ) -> Path:
        """The image of a case, `train:<id>` for a training case, in the format that the server has it in; a DICOM
        series comes as one `.nii.gz`.

        Args:
            target: a file, or a folder, where the file gets a name made from the case's id.

        Returns:
            The file written. It is whole or not there, here and in the other downloads.

        Raises:
            InputError: it cannot be written, or `target` has the extension of another format.
        """
        call = self._file_call("/datastore/image", cancel, image=case_id)
        return self._transport.download(call, Path(target), _segment(case_id), None, progress)

    def download_files(
        self, case_id: str, target: Path | str, *, progress: Progress = silent, cancel: Cancel = never
    ) -> Path:
        """The files of a synthetic case as they are, such as those of a DICOM series, in a `.zip`."""
        call = self._file_call(f"/replica/cases/{_segment(case_id)}/files", cancel)
        return self._transport.download(call, Path(target), _segment(case_id), ARCHIVE, progress)

    def download_mask(
        self, case_id: str, target: Path | str, *, progress: Progress = silent, cancel: Cancel = never
    ) -> Path:
        """The mask of a case (`train:<id>`: of a training case) that comparisons use, `.nii.gz`."""
        call = self._file_call(f"/replica/masks/{_segment(case_id)}", cancel)
        return self._transport.download(call, Path(target), f"{_segment(case_id)}_mask", ".nii.gz", progress)

    def surface(
        self,
        synthetic_id: str,
        training_id: str,
        target: Path | str,
        *,
        of: str = "synthetic",
        progress: Progress = silent,
        cancel: Cancel = never,
    ) -> Path:
        """The surface of one image's mask, each point with its distance in mm to the other's; VTK XML (.vtp).

        Args:
            of: synthetic or training: whose surface, in the RAS mm of that image's own file.
        """
        return self._pair_file("surfaces", synthetic_id, training_id, target, f"_{of}.vtp", progress, cancel, of=of)

    def difference(
        self,
        synthetic_id: str,
        training_id: str,
        target: Path | str,
        *,
        progress: Progress = silent,
        cancel: Cancel = never,
    ) -> Path:
        """Synthetic minus training image in mapped intensity, -1 to 1; `.nii.gz` in the synthetic image's space."""
        return self._pair_file("difference", synthetic_id, training_id, target, "_difference.nii.gz", progress, cancel)

    def aligned(
        self,
        synthetic_id: str,
        training_id: str,
        target: Path | str,
        *,
        progress: Progress = silent,
        cancel: Cancel = never,
    ) -> Path:
        """The training image moved onto the synthetic one, `.nii.gz`. Raises NotFoundError without an alignment."""
        return self._pair_file("aligned", synthetic_id, training_id, target, "_aligned.nii.gz", progress, cancel)

    def segmenters(self) -> tuple[str, ...]:
        """Names of the models of the server that draw masks."""
        info = self._transport.json(Call("GET", "/info/", {}, self.timeout))
        try:
            return tuple(name for name, model in info["models"].items() if model["type"] == "segmentation")
        except (TypeError, KeyError, AttributeError) as error:
            raise self._transport.not_understood("no page of information") from error

    def segment(
        self, model: str, case_id: str, target: Path | str, *, progress: Progress = silent, cancel: Cancel = never
    ) -> Path:
        """The mask that one of `segmenters()` draws of a case, `.nii.gz` on the grid of the image."""
        query = {"output": "image", "image": case_id}
        call = Call("POST", f"/infer/{_segment(model)}", query, self.long_timeout, cancel=cancel)
        name = f"{_segment(case_id)}_{_segment(model)}"
        return self._transport.download(call, Path(target), name, ".nii.gz", progress)

    def segment_file(
        self, model: str, image: Path | str, target: Path | str, *, progress: Progress = silent, cancel: Cancel = never
    ) -> Path:
        """The same for a local image, which the server does not keep; errors as in `compare_file`."""
        path = f"/infer/{_segment(model)}"
        name = f"{file_stem(Path(image))}_{_segment(model)}"
        with in_one_file(Path(image), cancel) as file:
            body = Multipart({"file": file}, progress)
            call = Call("POST", path, {"output": "image"}, self.long_timeout, body, cancel=cancel)
            return self._transport.download(call, Path(target), name, ".nii.gz", progress)

    def report(self, target: Path | str, *, progress: Progress = silent, cancel: Cancel = never) -> Path:
        """The HTML report of the scored set, one file that opens without a network."""
        call = self._file_call("/replica/report", cancel)
        return self._transport.download(call, Path(target), "report", ".html", progress)

    # ---------------------------------------------------------------------------------------------------------- ratings

    def rate(
        self,
        synthetic_id: str,
        training_id: str,
        rating: int,
        *,
        comment: str = "",
        blinded: bool = False,
        seconds: float = 0.0,
        reader: str = "",
        index_version: str = "",
        rating_id: str = "",
        created: str = "",
    ) -> schema.RatingReceipt:
        """Stores a reader's opinion of a pair (see `ratings.SCALE`); when this returns, it is on the server's disk.

        A program that keeps ratings for later gives each a `rating_id` (a UUID) and sends it until a receipt comes; it
        counts once. With a key, the owner of the key replaces `reader`.
        """
        one = Rating(
            rating_id or str(uuid.uuid4()),
            reader,
            synthetic_id,
            training_id,
            rating,
            comment=comment,
            blinded=blinded,
            seconds=seconds,
            created=created,
            index_version=index_version,
        )
        body = json.dumps(schema.to_json(one)).encode()
        return self._read(schema.RatingReceipt, self._call("POST", "/ratings", {}, body))

    def ratings(
        self, *, reader: str | None = None, synthetic_id: str | None = None, all: bool = False
    ) -> tuple[Rating, ...]:
        """The latest rating of each pair by each reader; with `all` those that were replaced, too."""
        data = self._get("/ratings", reader=reader, synthetic_id=synthetic_id, all=all)
        return self._read_all(Rating, data)

    def download_ratings(self, target: Path | str) -> Path:
        """The same as a table for `replica-detection calibrate`, `.csv`."""
        call = self._file_call("/replica/ratings", never, format="csv")
        return self._transport.download(call, Path(target), "ratings", ".csv")

    def agreement(self) -> schema.AgreementReport:
        """Agreement of the readers, and the thresholds that follow from their ratings."""
        return self._read(schema.AgreementReport, self._get("/agreement", slow=True))

    # ------------------------------------------------------------------------------------------------------------- jobs

    def start_scoring(self) -> schema.Job:
        """Starts to compare all studies in the background. Raises ServerError (status 409) where that is under way."""
        return self._start("score")

    def start_indexing(self) -> schema.Job:
        """Starts to build the training index, or to add new training cases; otherwise as `start_scoring`."""
        return self._start("index")

    def jobs(self) -> tuple[schema.Job, ...]:
        return self._read_all(schema.Job, self._get("/jobs"))

    def job(self, job_id: str) -> schema.Job:
        return self._read(schema.Job, self._get(f"/jobs/{_segment(job_id)}"))

    def cancel(self, job_id: str) -> schema.Job:
        """Asks a job to stop; its state says when it has stopped."""
        return self._read(schema.Job, self._call("DELETE", f"/jobs/{_segment(job_id)}", {}))

    def wait(
        self, job_id: str, *, progress: Progress = silent, cancel: Cancel = never, every: float = 1.0
    ) -> schema.Job:
        """Returns the job once it has ended, well or not. Cancelling ends the wait, not the job."""
        while True:
            job = self.job(job_id)
            progress(job.stage or job.state, job.done, job.total)
            if job.state not in ("queued", "running"):
                return job
            pause(every, cancel)

    # ---------------------------------------------------------------------------------------------------------- helpers

    def _start(self, kind: str) -> schema.Job:
        return self._read(schema.Job, self._call("POST", f"/jobs/{kind}", {}, idempotent=False))

    def _get(self, path: str, *, slow: bool = False, cancel: Cancel = never, **query: Any) -> Any:
        return self._call("GET", path, query, slow=slow, cancel=cancel)

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        body: bytes | Multipart | None = None,
        *,
        slow: bool = False,
        idempotent: bool = True,
        cancel: Cancel = never,
    ) -> Any:
        timeout = self.long_timeout if slow else self.timeout
        return self._transport.json(Call(method, f"/replica{path}", query, timeout, body, idempotent, cancel))

    def _file_call(self, path: str, cancel: Cancel, **query: Any) -> Call:
        return Call("GET", path, query, self.long_timeout, cancel=cancel)

    def _pair_file(
        self,
        kind: str,
        synthetic_id: str,
        training_id: str,
        target: Path | str,
        name: str,
        progress: Progress,
        cancel: Cancel,
        **query: Any,
    ) -> Path:
        pair = _segment(synthetic_id), _segment(training_id)
        call = self._file_call(f"/replica/{kind}/{pair[0]}/{pair[1]}", cancel, **query)
        stem, dot, suffix = name.partition(".")
        return self._transport.download(call, Path(target), "_".join(pair) + stem, dot + suffix, progress)

    def _read(self, kind: type[T], data: Any) -> T:
        try:
            return schema.from_json(kind, data)
        except ValueError as error:
            raise self._transport.not_understood(str(error)) from error

    def _read_all(self, kind: type[T], data: Any) -> tuple[T, ...]:
        if not isinstance(data, list):
            raise self._transport.not_understood(f"expected a list, found {type(data).__name__}")
        return tuple(self._read(kind, item) for item in data)


def _segment(name: str) -> str:
    """An id as one segment of an address, which is also a file name on every system but for its length."""
    return quote(name, safe="")
