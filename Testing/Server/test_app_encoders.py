"""The feature level on a server: which embedding it uses, the encoder that it trains, and what feature measures say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests
import torch

from Core import made_up
from replica_detection.client import ReplicaClient
from replica_detection.embedding.training import nt_xent, similarity_error, train_encoder
from replica_detection.embedding.training_options import EncoderOptions
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.results.result import DetectionResult
from replica_detection_server.comparison import tasks
from replica_detection_server.comparison.engine import Engine
from replica_detection_server.computing.jobs import Jobs
from replica_detection_server.computing.services import Services
from replica_detection_server.errors import RefusedError
from replica_detection_server.incoming.error_responses import answer_of
from replica_detection_server.lib.trainers import encoder as trainer_module
from replica_detection_server.lib.trainers.encoder import TrainEncoder
from replica_detection_server.settings import embeddings
from replica_detection_server.settings.configuration import Configuration
from Server.conftest import until
from Server.running import Server, running_server

FEATURE = ("mae", "embedding_cosine", "memorization_index", "slice_votes")
COPY, COPIED = "copy", "train_003"
QUICK = {"epochs": 1, "device": ["cpu"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Training scans, unseen ones, and studies of which one is a copy."""
    made = tmp_path_factory.mktemp("feature")
    made_up.cohort(made / "training", 8, prefix="train")
    made_up.cohort(made / "unseen", 12, 100, "unseen")
    made_up.cohort(made / "studies", 3, 200, "syn")
    (made / "studies" / f"{COPY}.nii.gz").write_bytes((made / "training" / f"{COPIED}.nii.gz").read_bytes())
    return made


@pytest.fixture(scope="module")
def contrastive(folder) -> Path:
    """An encoder that was trained elsewhere."""
    from replica_detection.io.cohort import Cohort

    options = EncoderOptions(epochs=1, batch=4, max_size=16, device="cpu")
    train_encoder(Cohort.read(folder / "training"), folder / "elsewhere", options=options)
    return folder / "elsewhere"


def configured(folder: Path, data: Path, **conf: str) -> Configuration:
    pairs = {"training": str(folder / "training"), "data": str(data), "measures": "mae,embedding_cosine", **conf}
    return Configuration.of(folder / "studies", pairs)


# ------------------------------------------------------------------------------------------------- what is started with


def test_a_path_behind_a_name_is_the_same_from_every_working_folder(folder, contrastive, tmp_path, monkeypatch):
    monkeypatch.chdir(contrastive.parent)
    made = configured(folder, tmp_path, embedding="contrastive:elsewhere", segment="vessels")
    assert (made.embedding, made.segment) == (f"contrastive:{contrastive}", "vessels")
    assert made.named_files == {"embedding": contrastive}
    monkeypatch.chdir("/")
    assert embeddings.make(Configuration.from_json(made.to_json())).images.kind == "contrastive"


@pytest.mark.parametrize(
    ("conf", "error", "words"),
    [
        ({"embedding": "nonsense"}, ConfigurationError, "unknown embedding 'nonsense'"),
        ({"slice_embedding": "nonsense"}, ConfigurationError, "unknown embedding 'nonsense'"),
        ({"embedding": "medicalnet_gap:gone.pth"}, InputError, "gone.pth"),
        ({"embedding": "deepssim:ELSEWHERE"}, InputError, "not one of embedding 'deepssim'"),
        ({"embedding": "invariants:x"}, ConfigurationError, "takes no file"),
        ({"embedding": "trained"}, ConfigurationError, "training task `encoder`"),
        ({"slice_embedding": "trained"}, ConfigurationError, "unknown embedding 'trained'"),
    ],
)
def test_an_embedding_that_cannot_be_is_refused_at_the_start(folder, contrastive, tmp_path, conf, error, words):
    conf = {key: value.replace("ELSEWHERE", str(contrastive)) for key, value in conf.items()}
    with pytest.raises(error, match=words):
        configured(folder, tmp_path, **conf)


def test_an_index_alone_has_its_own_embedding(folder, tmp_path):
    index = tasks.build_index(configured(folder, tmp_path)).folder
    alone = {"data": str(tmp_path / "other"), "index": str(index)}
    assert Configuration.of(folder / "studies", alone).embedding is None
    with pytest.raises(ConfigurationError, match="an index alone has its own"):
        Configuration.of(folder / "studies", {**alone, "embedding": "invariants"})


# ----------------------------------------------------------------------------------------- the index and the embedding


def test_an_index_of_another_embedding_is_not_used_but_made_anew(folder, contrastive, tmp_path, monkeypatch):
    plain = configured(folder, tmp_path)
    tasks.build_index(plain)
    for same in (plain, replace(plain, embedding="invariants"), replace(plain, measures="mae")):
        assert Engine(same).training() is not None and tasks.open_index(same)
    named = replace(plain, embedding=f"contrastive:{contrastive}")
    with pytest.raises(IndexFormatError, match="another embedding"):
        tasks.open_index(named)
    services = Services(named)
    with pytest.raises(RefusedError, match=r"another embedding.*/replica/jobs"):
        services.engine.required_index()
    monkeypatch.setattr(Jobs, "start", lambda self, kind: started.append(kind))
    started: list[str] = []
    services.start()
    assert started == ["index"]

    built = tasks.build_index(named)
    assert built.embedder_settings["images"]["name"] == "contrastive"
    assert services.engine.required_index().version == built.content_id, "the running server takes it"
    before = (named.index / "index.json").stat().st_mtime_ns
    assert tasks.build_index(named).content_id == built.content_id
    assert (named.index / "index.json").stat().st_mtime_ns == before, "it fits now and stays"


def test_an_index_without_a_measure_that_is_named_is_made_anew_by_the_scoring(folder, tmp_path):
    plain = configured(folder, tmp_path, measures="mae")
    tasks.build_index(plain)
    more = replace(plain, measures="mae,embedding_cosine")
    with pytest.raises(IndexFormatError, match="'embedding_cosine'"):
        tasks.open_index(more)
    result = tasks.score(more)
    assert {m.measure for m in result.matches} == {"mae", "embedding_cosine"}
    assert next(c for c in result.summary if c.synthetic_id == COPY).nearest_training_id == COPIED
    with pytest.raises(IndexFormatError, match="Build it again"):
        tasks.score(replace(more, training=None, measures="mae,memorization_index"))


# ---------------------------------------------------------------------------------------------------- the training task


def test_an_encoder_is_trained_to_its_end_and_then_used(folder, tmp_path, monkeypatch):
    plain = configured(folder, tmp_path)
    trainer = TrainEncoder(plain)
    assert trainer.stats() == {"best_metric": 0.0}
    # As MONAI Label's client for Slicer sends it: choices as the whole list.
    request = {**trainer.config(), **QUICK, "epochs": 3, "client_id": "reader"}

    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "training" and done > total / 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module, "logged", lambda task: stopped)
        trainer(request, None)
    assert trainer.stats()["epoch"] == 1, "the first epoch is kept"
    with pytest.raises(ConfigurationError, match="no encoder was trained"):
        configured(folder, tmp_path, embedding="trained")

    stages: list[tuple[str, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "logged", lambda task: lambda stage, done, total: stages.append((stage, done)))
        done = trainer(request, None)
    assert min(n for stage, n in stages if stage == "training") > 1, "it went on after the epoch that was done"
    assert json.loads(json.dumps(done, allow_nan=False)) == done
    assert (done["kind"], done["epochs"]) == ("contrastive", 3) and 0 < done["best_metric"] < 1
    assert trainer.stats()["best_metric"] == pytest.approx(done["best_metric"])

    named = configured(folder, tmp_path, embedding="trained")
    first = tasks.build_index(named)
    assert first.embedders.images is not None and first.embedders.images.kind == "contrastive"
    # A training that is under way does not touch the encoder in use; one that ended does.
    again = trainer({**request, "epochs": 1, "kind": "deepssim", "restart": True}, None)
    assert again["kind"] == trainer.stats()["kind"] == "deepssim" and 0 <= again["best_metric"] <= 1
    with pytest.raises(IndexFormatError, match="another embedding"):
        tasks.open_index(named)
    assert tasks.build_index(named).embedders.images.kind == "deepssim"
    assert TrainingIndex.open(named.index).content_id != first.content_id


@pytest.mark.parametrize("bad", [{"epochs": "many"}, {"epochs": 0}, {"kind": "none"}])
def test_a_training_that_cannot_be_is_refused(folder, tmp_path, bad):
    with pytest.raises(RefusedError) as refused:
        TrainEncoder(configured(folder, tmp_path))({**QUICK, **bad}, None)
    assert answer_of(refused.value).status_code == 422
    without = replace(configured(folder, tmp_path), training=None)
    for refuses in (TrainEncoder(without).require_material, lambda: TrainEncoder(without)(QUICK, None)):
        with pytest.raises(RefusedError, match="start the server with training") as refused:
            refuses()
    assert answer_of(refused.value).status_code == 409
    assert not embeddings.trained_file(without).exists()


def test_the_bar_of_a_client_is_1_for_the_best_encoder_and_chance_for_none():
    quality = trainer_module._quality
    apart, alike = torch.eye(6), torch.ones(6, 6)
    assert quality("contrastive", float(nt_xent(apart, apart))) == pytest.approx(1, abs=1e-4)
    assert quality("contrastive", float(nt_xent(alike, alike))) == pytest.approx(1 / 11)
    off = torch.full((6, 6), 0.75)
    assert quality("deepssim", float(similarity_error(alike, alike, off))) == pytest.approx(0.75)
    assert quality("deepssim", 4.0) == 0 and quality("contrastive", math.nan) == 0


# ------------------------------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def data(folder) -> Path:
    return folder / "data"


def launched(folder: Path, data: Path, log: str, **pairs: str):
    (folder / log).mkdir()
    pairs = {"validation": str(folder / "unseen"), **pairs}
    return running_server(
        folder / "studies", work=folder / log, training=folder / "training", data=data, conf=pairs, hardened=True
    )


@pytest.fixture(scope="module")
def server(folder, data):
    """The tests below use it in their order: scored, then with an encoder that it trained."""
    measures = ",".join(FEATURE)
    tasks.score(configured(folder, data, measures=measures, validation=str(folder / "unseen")))
    with launched(folder, data, "first", measures=measures) as running:
        yield running


def finished(server: Server) -> None:
    client = ReplicaClient(server.url)
    for job in client.jobs():
        assert client.wait(job.id, every=0.1).state == "done", f"{client.job(job.id)}\n{server.log_text()[-2000:]}"


@pytest.mark.slow
def test_feature_measures_that_are_named_reach_every_answer(server, data):
    client = ReplicaClient(server.url)
    status = client.status()
    assert [m.name for m in status.index.measures] == list(FEATURE) and not status.problem
    assert {m.level for m in status.index.measures} == {"voxel", "feature"}
    assert [h.measure for h in client.histograms()] == ["", *FEATURE]
    first = next(iter(client.worklist()))
    assert (first.synthetic_id, first.nearest_training_id, first.verdict) == (COPY, COPIED, "replica")
    assert "feature" in first.levels_flagged
    found = {m.measure: m for m in client.comparison(COPY).measures}
    assert list(found) == list(FEATURE) and {m.nearest_training_id for m in found.values()} == {COPIED}
    assert all(m.distance == 0 for m in found.values())
    said = {name: {d.name: d.text for d in m.details} for name, m in found.items()}
    assert not said["mae"] and not said["embedding_cosine"]
    assert said["slice_votes"] == {"votes": "1", "offset slices": "0"}
    mi = said["memorization_index"]
    assert mi["similarity"] == "1" and mi["layers agreeing"] == "4 of 4" and mi["nearest layer 1"] == COPIED
    kept = DetectionResult.read(data / "scored").details_of(COPY)["memorization_index"]["MI"]
    assert float(mi["MI"]) == pytest.approx(kept, rel=1e-3)
    page = requests.get(f"{server.url}/replica/report", timeout=60).text
    assert "memorization_index" in page and f"MI {mi['MI']}" in page


@pytest.mark.slow
def test_an_upload_gets_the_same_from_the_measures_that_search_and_learn(server, folder):
    client = ReplicaClient(server.url)
    for case in ("syn_001", COPY):
        sent = client.compare_file(folder / "studies" / f"{case}.nii.gz", k=3)
        known = client.comparison(case, k=3)
        for one, other in zip(sent.measures, known.measures, strict=True):
            assert (one.measure, one.details) == (other.measure, other.details)
            assert [n.training_id for n in one.neighbors] == [n.training_id for n in other.neighbors]
            # A matrix product rounds otherwise when there is one image instead of four.
            values, others = ([m.value, m.ratio, *(n.distance for n in m.neighbors)] for m in (one, other))
            assert values == pytest.approx(others, abs=1e-12)
        assert sent.nearest_training_id == known.nearest_training_id


@pytest.mark.slow
def test_a_training_without_masks_is_refused_before_it_is_a_job(server):
    reply = requests.post(f"{server.url}/train/segmentation", json={}, timeout=30)
    assert reply.status_code == 409 and "training needs masks" in reply.json()["detail"]
    assert requests.get(f"{server.url}/train/", timeout=30).status_code == 404, "no job was made"


@pytest.mark.slow
def test_a_stock_client_trains_an_encoder_and_the_next_start_uses_it(server, folder, data):
    url = server.url
    offered = requests.get(f"{url}/info/", timeout=30).json()["trainers"]["encoder"]["config"]
    assert offered["kind"] == ["contrastive", "deepssim"] and "restart" in offered
    assert requests.post(f"{url}/train/encoder", json={**offered, **QUICK, "device": "cpu"}, timeout=30).ok
    until(
        lambda: requests.get(f"{url}/train/", timeout=30).json()["status"] not in ("SUBMITTED", "RUNNING"),
        "the training does not end",
        seconds=120,
    )
    job = requests.get(f"{url}/train/", timeout=30).json()
    assert job["status"] == "DONE", job
    stats = requests.get(f"{url}/info/", timeout=30).json()["train_stats"]["encoder"]
    assert 0 < stats["best_metric"] < 1 and stats["kind"] == "contrastive"
    before = ReplicaClient(url).status().index
    server.process.terminate()
    server.process.wait(30)

    with launched(folder, data, "second", measures="mae,embedding_cosine", embedding="trained") as again:
        finished(again)
        client = ReplicaClient(again.url)
        after = client.status().index
        assert after.version != before.version and [j.kind for j in client.jobs()] == ["index"], "made at the start"
        definition = {m.name: m.definition for m in after.measures}["embedding_cosine"]
        assert "contrastive" in definition and "invariants" in before.measures[1].definition
        found = client.comparison(COPY)
        assert found.nearest_training_id == COPIED and found.index_version == after.version
        assert client.worklist_page().index_version == before.version, "scores are of the old one until scored again"
        assert str(data) not in (data / "logs" / "server.log").read_text(encoding="utf-8")
