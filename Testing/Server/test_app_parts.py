"""The parts of the app without a server."""

from __future__ import annotations

import io
import json
import math
import os
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from fastapi import HTTPException, Request, UploadFile
from hypothesis import given
from hypothesis import strategies as st

from Core import made_masks, made_up
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.readers import worklist
from replica_detection.readers.ratings import Rating
from replica_detection.results.result import VERDICTS, CaseSummary
from replica_detection.results.schema import WorklistItem
from replica_detection.results.views import worklist_item
from replica_detection.surfaces.mesh import mesh_of_mask
from replica_detection_server.access.identity import ROLES, Identity, identify, sees_all, visible
from replica_detection_server.collection import cohorts
from replica_detection_server.collection.task_files import fresh_file
from replica_detection_server.comparison import exports
from replica_detection_server.comparison.tasks import missing_index
from replica_detection_server.computing.jobs import Jobs
from replica_detection_server.computing.services import Services
from replica_detection_server.errors import AlreadyRunningError, RefusedError
from replica_detection_server.incoming.error_responses import answer_of
from replica_detection_server.routes.received_files import received
from replica_detection_server.settings.configuration import Configuration, default_data_folder
from replica_detection_server.settings.launch_settings import Settings
from replica_detection_server.uploads.limits import UploadLimits
from replica_detection_server.util.caching import FileCache, LruCache
from replica_detection_server.util.progress import Pace, throttled, time_left
from Server.collections_on_disk import image_bytes

# ------------------------------------------------------------------------------------------------------ configuration


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    made_up.cohort(tmp_path / "training", 1)
    (tmp_path / "studies").mkdir()
    return {"training": str(tmp_path / "training"), "data": str(tmp_path / "data")}


def test_configuration_travels_to_another_process(folders, tmp_path):
    more = {**folders, "k": "7", "alpha": "0.1", "segment": "vessels", "profile": "head-ct", "validation": ""}
    made = Configuration.of(tmp_path / "studies", more)
    assert (made.k, made.alpha, made.segment, made.validation) == (7, 0.1, "vessels", None)
    assert made.index == tmp_path / "data" / "training.rdindex"
    assert Configuration.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainnig": "x"}, "trainnig"),
        ({"k": "many"}, "many"),
        ({"data": "training/data"}, "nothing may be written"),
        ({"index": "training/x.rdindex"}, "nothing may be written"),
        ({"training": "gone"}, "does not exist"),
        ({"masks": "gone"}, "does not exist"),
        ({"patient_pattern": "["}, "no regular expression"),
        ({"patient_pattern": "case"}, "has no group"),
        ({"training": ""}, "nothing to compare with"),
        ({"training": "", "index": "gone.rdindex"}, "no finished index"),
    ],
)
def test_what_cannot_be_started_says_why(folders, tmp_path, changes, words):
    paths = ("data", "index", "training", "masks")
    changes = {k: str(tmp_path / v) if k in paths and v else v for k, v in changes.items()}
    with pytest.raises((ConfigurationError, InputError), match=words):
        Configuration.of(tmp_path / "studies", {**folders, **changes})
    for studies in ("http://pacs/dicom-web", tmp_path / "training"):
        with pytest.raises(ConfigurationError):
            Configuration.of(studies, folders)


def test_patients_of_both_cohorts_come_from_one_table_or_pattern(tmp_path):
    made_up.cohort(tmp_path / "training", 3)
    made_up.cohort(tmp_path / "unseen", 2)
    for n in range(2):
        (tmp_path / "unseen" / f"case_00{n}.nii.gz").rename(tmp_path / "unseen" / f"v{n}.nii.gz")
    (tmp_path / "studies").mkdir()
    (tmp_path / "p.csv").write_text("id,patient\ncase_000,A\ncase_001,A\ncase_002,B\nv0,C\nv1,D\n", encoding="utf-8")
    folders = {name: str(tmp_path / name) for name in ("training", "data")} | {"validation": str(tmp_path / "unseen")}
    for option, found in (
        ({"patients": str(tmp_path / "p.csv")}, (["A", "A", "B"], ["C", "D"])),
        ({"patient_pattern": "case_(..)"}, (["00", "00", "00"], [None, None])),
    ):
        made = Configuration.of(tmp_path / "studies", folders | option)
        training, unseen = cohorts.training(made), cohorts.validation(made)
        assert tuple([case.patient for case in cohort.cases] for cohort in (training, unseen)) == found
        assert not training.problems
    with pytest.raises(ConfigurationError, match="either patients or patient_pattern"):
        Configuration.of(
            tmp_path / "studies", folders | {"patients": str(tmp_path / "p.csv"), "patient_pattern": "(c)"}
        )


def test_each_collection_of_studies_has_a_data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    one, other = default_data_folder(Path("/a/studies")), default_data_folder(Path("/b/studies"))
    assert one != other and one.name.startswith("studies-") and one == default_data_folder(Path("/a/studies"))


# ----------------------------------------------------------------------------------------------------------- worklist

scores = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12)


def made_items(values) -> list[WorklistItem]:
    return [
        WorklistItem(
            f"c{n:02d}", "" if v is None else VERDICTS[n % len(VERDICTS)], v, rating=None if n % 3 else 1 + n % 4
        )
        for n, v in enumerate(values)
    ]


@given(scores, st.sampled_from(["score", "synthetic_id", "verdict", "rating"]), st.booleans())
def test_sorting_loses_nothing_and_puts_what_is_unknown_last(values, sort, descending):
    items = made_items(values)
    found = worklist.ordered(items, sort, descending=descending)
    assert sorted(i.synthetic_id for i in found) == [i.synthetic_id for i in items]
    if sort in ("score", "rating"):
        seen = [getattr(i, sort) for i in found]
        known = [v for v in seen if v is not None]
        assert seen == known + [None] * (len(seen) - len(known))
        assert known == sorted(known, reverse=descending)


@given(scores, st.integers(0, 12))
def test_going_on_behind_each_case_visits_all_unrated_ones_once(values, start):
    items = made_items(values)
    order = [i for i in worklist.ordered(items) if i.rating is None]
    after, seen = "", []
    while (item := worklist.next_unrated(items, "reader", after)) is not None:
        seen.append(item)
        after = item.synthetic_id
    assert seen == order
    assert worklist.next_unrated(items, "reader", "unknown") == (order[0] if order else None)


def test_a_reader_sees_the_own_latest_rating_and_how_many_have_rated():
    def rating(n: int, reader: str, value: int, training: str = "t", created: str = "") -> Rating:
        return Rating(str(n), reader, "s", training, value, created=created)

    said = [rating(1, "a", 1, created="2026-01-02"), rating(2, "a", 4, "u", created="2026-01-01"), rating(3, "b", 3)]
    row = worklist_item(CaseSummary("s", "novel", math.nan, "", (), 0))
    mine, theirs, nobody = (worklist.with_ratings([row, WorklistItem("x")], said, r)[0] for r in ("a", "b", ""))
    assert (mine.rating, theirs.rating, nobody.rating) == (4, 3, None)
    assert mine.readers == 2 and mine.score is None and mine.verdict == "novel"


# ------------------------------------------------------------------------------------------------ who sees which rating


def asking(settings: Settings | None, identity: Identity | None = None) -> Request:
    """A request as it reaches a route, from someone whom the gate knows."""
    state = SimpleNamespace() if settings is None else SimpleNamespace(settings=settings)
    scope = {"type": "http", "app": SimpleNamespace(state=state)}
    if identity is not None:
        identify(scope, identity)
    return Request(scope)


@pytest.mark.parametrize(
    ("how", "role", "seen"),
    [
        ({"api_key_file": Path("keys")}, "annotator", "b"),
        ({"api_key_file": Path("keys")}, "user", "b"),
        ({"api_key_file": Path("keys")}, "reviewer", "abc"),
        ({"realm_uri": "https://realm"}, "annotator", "b"),
        ({"realm_uri": "https://realm"}, "admin", "abc"),
        ({"realm_uri": "https://realm", "ratings_visible": "own"}, "annotator", "b"),
        ({"realm_uri": "https://realm", "ratings_visible": "all"}, "user", "abc"),
        ({}, None, "abc"),
        (None, None, "abc"),
    ],
)
def test_readers_see_each_others_ratings_only_where_they_may(tmp_path, how, role, seen):
    said = [Rating(r, r, "s", "t", 4) for r in "abc"]
    settings = None if how is None else Settings(data=tmp_path, **how)
    request = asking(settings, None if role is None else Identity("b", ROLES.index(role)))
    assert "".join(r.reader for r in visible(said, request)) == seen
    assert sees_all(request) == (seen == "abc")


# -------------------------------------------------------------------------------------------------- progress in words


def test_the_time_that_is_left_follows_the_pace_of_the_stage():
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert (pace.words, pace.seconds_left) == ("starting", None)
    pace.note("preparing", 600, 774)  # an earlier job got so far
    assert pace.words == "reading the training scans, 600 of 774"
    now[0] += 24
    pace.note("preparing", 612, 774)
    assert pace.seconds_left == pytest.approx(2 * 162)
    assert pace.words == "reading the training scans, 612 of 774, about 5 minutes left"
    now[0] += 300
    assert pace.words.endswith("less than a minute left") and pace.seconds_left == pytest.approx(24)
    now[0] += 3000
    assert pace.seconds_left == 0
    pace.note("null", 0, 50)
    assert pace.words == "comparing real scans with each other, 0 of 50"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "less than a minute"), (45, "about 1 minute"), (240, "about 4 minutes"), (5000, "about 83 minutes"),
     (9000, "about 2 hours")],
)  # fmt: skip
def test_times_in_words(seconds, words):
    assert time_left(seconds) == f"{words} left"


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        (("reading the training scans, 3 of 9", None, ""), 503, "being made: reading the training scans, 3 of 9; try"),
        (("reading", IndexFormatError("x.rdindex", "fits not", "Do"), ""), 503, "being made: reading"),
        (("", IndexFormatError("/a/x.rdindex", "fits not", "Do"), ""), 409, "x.rdindex: fits not"),
        (("", None, "no readable image."), 409, "could not be made: no readable image. When"),
        (("", None, ""), 409, "start it with POST /replica/jobs/index"),
    ],
)
def test_why_there_is_no_index_and_what_to_do(state, status, words):
    found = answer_of(missing_index(*state))
    assert found.status_code == status and words in found.detail
    assert (found.headers or {}).get("Retry-After") == ("5" if status == 503 else None)


# ------------------------------------------------------------------------------------------------------------- keeping


def test_what_is_kept_is_read_again_only_after_a_change(tmp_path):
    mark, reads = tmp_path / "mark", []

    def read() -> str:
        reads.append(mark.read_text(encoding="utf-8"))
        if reads[-1] == "broken":
            raise InputError(mark, "is broken", "Mend it")
        return reads[-1]

    kept = FileCache(mark, read)
    assert kept.now() is None
    mark.write_text("one", encoding="utf-8")
    assert kept.now() == kept.now() == "one" and len(reads) == 1
    _written(tmp_path / "new", "two").replace(mark)
    assert kept.now() == "two"
    mark.unlink()
    assert kept.now() == "two", "a writer is about to move a new one into place"
    mark.write_text("broken", encoding="utf-8")
    with pytest.raises(InputError):
        kept.now()


def test_what_is_replaced_while_it_is_read_is_read_again(tmp_path):
    mark = _written(tmp_path / "mark", "old")

    def read() -> str:
        text = mark.read_text(encoding="utf-8")
        if text == "old":
            _written(tmp_path / "new", "newer").replace(mark)
        return text

    kept = FileCache(mark, read)
    assert kept.now() == kept.now() == "newer"


def test_recent_results_are_made_once_for_all_who_ask_at_once():
    made = []

    def make() -> int:
        time.sleep(0.1)
        made.append(1)
        return len(made)

    recent: LruCache[int] = LruCache(2)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(recent.get("a", make))) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [1] * 6
    for key in "bc":
        recent.get(key, make)
    assert recent.get("b", make) == 2 and recent.get("a", make) == 4, "only the last two are kept"
    with pytest.raises(ZeroDivisionError):
        recent.get("d", lambda: 1 // 0)
    assert recent.get("d", make) == 5


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------------------------- files


def test_uploads_are_private_and_gone_afterwards(tmp_path):
    content = image_bytes()
    sent = {"image": UploadFile(io.BytesIO(content), filename="../../x.NII"), "mask": None}
    with received(sent, tmp_path / "in", len(content), UploadLimits.of(1000)) as paths:
        assert {n: (p.name, p.read_bytes()) for n, p in paths.items()} == {"image": ("image.nii", content)}
        assert os.name != "posix" or paths["image"].parent.stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "in").iterdir())


@pytest.mark.parametrize(
    ("names", "content", "status"),
    [
        (["a.nii", "b.nii"], image_bytes(600), 413),
        (["a.nii"], image_bytes(1001), 413),
        (["a.nii"], b"", 422),
        (["a.zip"], b"1", 422),
    ],
)
def test_uploads_beyond_the_limit_are_refused_and_gone(tmp_path, names, content, status):
    sent = {f"f{n}": UploadFile(io.BytesIO(content), filename=name) for n, name in enumerate(names)}
    with pytest.raises(HTTPException) as refused, received(sent, tmp_path / "in", 1000, UploadLimits.of(1000)):
        raise AssertionError("was let in")
    assert refused.value.status_code == status and not list((tmp_path / "in").iterdir())


def test_an_archive_unpacks_to_no_more_than_the_images_may_hold(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for n in range(3):
            zipped.writestr(f"notes{n}.txt", bytes(1000))
    limits, sent = UploadLimits(1000, 2000), {"image": UploadFile(archive, filename="a.zip")}
    archive.seek(0)
    with (
        pytest.raises(InputError, match="unpacks to more than"),
        received(sent, tmp_path / "in", 1 << 20, limits, archives=("image",)),
    ):
        raise AssertionError("was let in")


def test_a_fresh_file_is_gone_after_an_error():
    with pytest.raises(ValueError, match="failed"), fresh_file(".nii.gz") as path:
        assert path.is_file()
        raise ValueError("failed")
    assert not path.exists()


def test_a_surface_in_the_space_of_a_mirrored_file_still_looks_outwards():
    mask = made_masks.blobs(3, 1, (20, 22, 18))[0]
    spacing = (1.0, 2.0, 0.5)
    affine = np.array([[0, -2.0, 0, 7], [1.0, 0, 0, -3], [0, 0, 0.5, 11], [0, 0, 0, 1]])
    for mirror in (1.0, -1.0):
        stated = affine @ np.diag([mirror, 1, 1, 1])
        moved = exports.in_file_space(mesh_of_mask(mask, np.diag([*spacing, 1.0])), spacing, stated)
        direct = mesh_of_mask(mask, stated)
        assert np.allclose(moved.points, direct.points, atol=1e-6)
        assert moved.volume == pytest.approx(direct.volume) and moved.volume > 0


def test_progress_is_told_seldom_but_its_end_and_each_stage_always():
    told: list[tuple[str, int, int]] = []
    tell = throttled(lambda *words: told.append(words), 60)
    for stage in ("a", "b"):
        for done in range(101):
            tell(stage, done, 100)
    assert told == [("a", 0, 100), ("a", 100, 100), ("b", 0, 100), ("b", 100, 100)]


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_that_waits_can_be_cancelled_and_only_the_last_ones_are_kept(folders, tmp_path, monkeypatch):
    jobs = Jobs(Configuration.of(tmp_path / "studies", folders))
    # A process that does nothing until it is ended.
    monkeypatch.setattr(Jobs, "_process", lambda self, job: _sleeper())
    first, second = jobs.start("index"), jobs.start("score")
    with pytest.raises(AlreadyRunningError):
        jobs.start("score")
    assert jobs.cancel(second.id).state == "cancelled" and jobs.cancel("unknown") is None
    assert jobs.cancel(first.id).state == "cancelled"
    assert [j.state for j in jobs.all()] == ["cancelled"] * 2
    monkeypatch.setattr("replica_detection_server.computing.jobs.KEPT", 3)
    for _ in range(5):
        jobs.cancel(jobs.start("index").id)
    assert len(jobs.all()) == 3
    assert [j["id"] for j in json.loads((tmp_path / "data" / "jobs" / "jobs.json").read_text(encoding="utf-8"))] == [
        j.id for j in jobs.all()
    ]


def test_a_process_that_dies_is_a_failed_job(folders, tmp_path, monkeypatch):
    jobs = Jobs(Configuration.of(tmp_path / "studies", folders))
    monkeypatch.setattr(Jobs, "_process", lambda self, job: _sleeper("import os; os._exit(9)"))
    job = jobs.start("index")
    end = time.monotonic() + 20
    while jobs.get(job.id).state not in ("failed", "done"):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert jobs.get(job.id).state == "failed" and "9" in jobs.failure("index") and jobs.failure("score") == ""


@pytest.mark.parametrize("content", [None, "{}", '{"schema_version": 0}'])
def test_an_index_that_is_missing_damaged_or_of_another_version_is_made_at_the_start(
    folders, tmp_path, monkeypatch, content
):
    index = tmp_path / "data" / "training.rdindex"
    index.mkdir(parents=True)
    if content is not None:
        (index / "index.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(Jobs, "_process", lambda self, job: _sleeper())
    services = Services(Configuration.of(tmp_path / "studies", folders))
    services.start()
    (job,) = services.jobs.all()
    services.close()
    assert job.kind == "index" and services.jobs.get(job.id).state == "cancelled"


def test_damaged_scores_are_no_scores(folders, tmp_path):
    scored = tmp_path / "data" / "scored"
    scored.mkdir(parents=True)
    (scored / "detection.json").write_text("{}", encoding="utf-8")
    services = Services(Configuration.of(tmp_path / "studies", folders))
    assert services.engine.scored() is None and services.worklist() == []


def test_a_damaged_list_of_jobs_keeps_no_server_from_starting(folders, tmp_path):
    (tmp_path / "data" / "jobs").mkdir(parents=True)
    (tmp_path / "data" / "jobs" / "jobs.json").write_text('[{"id": 3}', encoding="utf-8")
    assert Jobs(Configuration.of(tmp_path / "studies", folders)).all() == []


def _sleeper(code: str = "import time; time.sleep(600)"):
    import subprocess
    import sys

    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.slow
def test_a_network_is_trained_and_then_listed_as_a_model(tmp_path):
    from replica_detection.io.volume import read_volume
    from replica_detection_server.lib.infers.segmentation import segmentation_tasks
    from replica_detection_server.lib.trainers.segmentation import TrainSegmentation

    for n, mask in enumerate(made_masks.blobs(0, 4, made_up.SHAPE)):
        made_up.write(tmp_path / "training" / f"t{n}.nii.gz", made_up.volume(n))
        made_up.write(tmp_path / "masks" / f"t{n}.nii.gz", mask)
    (tmp_path / "studies").mkdir()
    given = {"training": tmp_path / "training", "training_masks": tmp_path / "masks", "data": tmp_path / "data"}
    configuration = Configuration.of(tmp_path / "studies", {k: str(v) for k, v in given.items()})
    trainer, task = TrainSegmentation(configuration), segmentation_tasks(configuration)["segmentation"]
    assert trainer.stats() == {"best_metric": 0.0} and not task.is_valid()
    # As MONAI Label's client for Slicer sends it: choices as the whole list.
    request = {**trainer.config(), "epochs": 1, "patch": 16, "device": ["cpu"], "client_id": "reader"}
    done = trainer(request, None)
    assert json.loads(json.dumps(done, allow_nan=False)) == done and 0 <= done["best_metric"] <= 1
    assert trainer.stats()["best_metric"] == pytest.approx(done["best_metric"])
    assert task.is_valid() and list(task.info()["labels"].values()) == [1]
    file, reply = task({"image": str(tmp_path / "training" / "t0.nii.gz")})
    try:
        import nibabel as nib

        assert nib.load(file).shape == read_volume(tmp_path / "training" / "t0.nii.gz").array.shape
        assert set(reply["label_names"].values()) == {1}
    finally:
        Path(file).unlink()
    for bad in ({"epochs": "many"}, {"patch": 0}):
        with pytest.raises(RefusedError) as refused:
            trainer({**request, **bad}, None)
        assert answer_of(refused.value).status_code == 422


def test_training_without_masks_is_refused(folders, tmp_path):
    from replica_detection_server.lib.trainers.segmentation import TrainSegmentation

    with pytest.raises(RefusedError) as refused:
        TrainSegmentation(Configuration.of(tmp_path / "studies", folders))({}, None)
    assert answer_of(refused.value).status_code == 409
