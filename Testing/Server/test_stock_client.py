"""Every call of MONAI Label's own client, and of its module for Slicer, beside what MONAI Label's own launch answers.

The client keeps the headers of one request for the next where it has a token or key: it announces bodies that never
come, and names the type of another body. One client is therefore used for the whole conversation, as its users do.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import monailabel.client.client
import requests

from Core.made_up import cohort, volume, write
from replica_detection.client import ReplicaClient
from Server.conftest import until
from Server.running import Server, running_server

pytestmark = pytest.mark.slow

ANNA, BERND = "key-of-anna-for-these-tests", "key-of-bernd-for-these-tests"
# Of the module for Slicer, which another interpreter of this machine may have.
TRAINING_OPTIONS = {
    "name": "train_01",
    "pretrained": True,
    "max_epochs": 1,
    "early_stop_patience": -1,
    "val_split": 0.2,
    "train_batch_size": 1,
    "val_batch_size": 1,
    "multi_gpu": True,
    "gpus": "all",
    "dataset": "SmartCacheDataset",
    "dataloader": ["ThreadDataLoader", "DataLoader"],
    "tracking": "None",
    "tracking_uri": "",
    "tracking_experiment_name": "",
}


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    return cohort(tmp_path_factory.mktemp("training"), 6, prefix="trn")


def _served(folder: Path, training: Path, hardened: bool, keys: str = "") -> Iterator[Server]:
    studies = cohort(folder / "studies", 2, 200, "syn")
    conf = {"measures": "mae"}
    if keys:
        (folder / "keys").write_text(keys, encoding="utf-8")
        (folder / "keys").chmod(0o600)
        conf["api_key_file"] = folder / "keys"
    with running_server(studies, work=folder, training=training, hardened=hardened, conf=conf) as server:
        client = ReplicaClient(server.url, BERND if keys else None)
        # The answers differ before and after the index is made, which begins with the server.
        until(lambda: client.status().index is not None, "no index was made", 60)
        yield server


@pytest.fixture(scope="module")
def stock(training, tmp_path_factory) -> Iterator[Server]:
    yield from _served(tmp_path_factory.mktemp("stock"), training, hardened=False)


@pytest.fixture(scope="module")
def ours(training, tmp_path_factory) -> Iterator[Server]:
    yield from _served(tmp_path_factory.mktemp("ours"), training, hardened=True)


@pytest.fixture(scope="module")
def keyed(training, tmp_path_factory) -> Iterator[Server]:
    keys = f"anna:{ANNA}\nbernd:{BERND} role=admin\n"
    yield from _served(tmp_path_factory.mktemp("keyed"), training, hardened=True, keys=keys)


def _modules() -> dict[str, ModuleType]:
    """The client of MONAI Label's package, and that of its module for Slicer where it is installed."""
    found = {"package": monailabel.client.client}
    for root in {Path(p).resolve() for p in (_prefix(), _prefix().parent)}:
        path = root / "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"
        if path.is_file():
            made = importlib.util.spec_from_file_location("of_slicer", path)
            found["slicer"] = importlib.util.module_from_spec(made)
            made.loader.exec_module(found["slicer"])
    return found


def _prefix() -> Path:
    return Path(sys.prefix)


def shape(value: Any) -> Any:
    """What a program can rely on: names and kinds, whatever they hold."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


class Conversation:
    """One client from its first call to its last; `said` is what each call gave."""

    def __init__(self, module: ModuleType, server: Server, folder: Path, key: str = ""):
        self.module, self.folder = module, folder
        self.client = module.MONAILabelClient(server.url, str(folder), "anna")
        self.said: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._call("auth_enabled", self.client.auth_enabled)
        if key:
            token = self._call("auth_token", lambda: self.client.auth_token("bernd", key))
            self.client.update_auth(token)

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.monotonic()
        try:
            found = call()
            self.said[name] = shape(found)
        except self.module.MONAILabelClientException as error:
            found, self.said[name] = error, error.msg.partition(";")[0]
        self.seconds[name] = time.monotonic() - start
        return found

    def run(self) -> Conversation:
        client, call = self.client, self._call
        image = write(self.folder / "new_image.nii.gz", volume(300))
        call("auth_valid_token", client.auth_valid_token)
        call("info", client.info)
        call("next_sample", lambda: client.next_sample("most_replica_like", {}))
        call("info again", client.info)
        session = call("create_session", lambda: client.create_session(str(image)))
        id = session["session_id"]
        call("get_session", lambda: client.get_session(id))
        call("infer a session", lambda: client.infer("vessels", "", {}, session_id=id))
        call("remove_session", lambda: client.remove_session(id))
        call("get a session that is gone", lambda: client.get_session(id))
        call("create_session after a form", lambda: client.create_session(str(image)))
        call("upload_image", lambda: client.upload_image(str(image), "new.image"))
        call("datastore", client.datastore)
        file, _ = call("infer", lambda: client.infer("vessels", "syn_000", {}))
        params = {"result_extension": ".nrrd", "result_dtype": "uint8", "restore_label_idx": False, "largest_cc": True}
        other, _ = call("infer with options", lambda: client.infer("vessels", "syn_000", params))
        assert Path(file).stat().st_size and Path(other).stat().st_size and other.endswith(".nrrd")
        call("save_label", lambda: client.save_label("syn_000", file, "final", {"label_info": []}))
        label = call("download_label", lambda: client.download_label("syn_000", "final"))
        assert Path(label).read_bytes() == Path(file).read_bytes()
        call("datastore with a label", client.datastore)
        call("wsi_infer", lambda: client.wsi_infer("vessels", "syn_000"))
        call("infer without a model", lambda: client.infer("none", "syn_000", {}))
        call("train_status before", lambda: client.train_status(check_if_running=True))
        call("train_start", lambda: client.train_start("build_index", dict(TRAINING_OPTIONS)))
        call("train_status", client.train_status)
        call("train_status, running", lambda: client.train_status(check_if_running=True))
        call("train_stop", client.train_stop)
        return self


# There are no slides here, and this call sends no key; MONAI Label takes it for another name of infer. Its answer to a
# model that it does not have is that of the app behind it.
REFUSED = {"wsi_infer": ("Status: 404", "Status: 401"), "infer without a model": ("Status: 404",)}


def comparable(name: str, said: Any) -> Any:
    """Without what chance decides, and without the folders of the machine, which only MONAI Label tells."""
    if name == "next_sample":
        return {k: v for k, v in said.items() if k not in ("path", "notes")}
    if name.startswith("datastore"):  # MONAI Label notes on an image to whom it was the next sample
        infos = [image["image"]["info"] for image in said["objects"].values()]
        labels = [set(image["labels"]) for image in said["objects"].values()]
        return sorted(said["objects"]), {k: v for info in infos for k, v in info.items() if k != "strategy"}, labels
    if name == "train_stop":  # null where the job has just ended or not begun
        return said == "NoneType" or {"id", "status"} <= set(said)
    if name.startswith("train_st") and isinstance(said, dict):  # options that change nothing are not handed on
        assert said.get("details", []) in ([], ["str"]), said
        return {k: v for k, v in said.items() if k not in ("details", "end_ts", "request")}
    return said


@pytest.fixture(scope="module")
def expected(stock, tmp_path_factory) -> Conversation:
    return Conversation(monailabel.client.client, stock, tmp_path_factory.mktemp("of_stock")).run()


@pytest.mark.parametrize("of", ["package", "slicer"])
@pytest.mark.parametrize("kind", ["ours", "keyed"])
def test_every_call_of_the_client(request, expected, tmp_path, kind, of):
    module = _modules().get(of)
    if module is None:
        pytest.skip("MONAI Label's module for Slicer is not installed here")
    server = request.getfixturevalue(kind)
    found = Conversation(module, server, tmp_path, BERND if kind == "keyed" else "").run()
    requests.delete(server.url + "/datastore/image?id=new.image", headers={"X-API-Key": BERND}, timeout=30)
    requests.delete(server.url + "/datastore/label?id=syn_000&tag=final", headers={"X-API-Key": BERND}, timeout=30)
    for name, said in expected.said.items():
        print(f"{name:28s} | {json.dumps(said)[:70]:70s} | {json.dumps(found.said[name])[:70]}")
    for name, statuses in REFUSED.items():
        assert found.said.pop(name) in statuses
    assert found.said.pop("auth_enabled") == "bool" and ("auth_token" in found.said) == (kind == "keyed")
    found.said.pop("auth_token", None)
    for name, said in found.said.items():
        assert comparable(name, said) == comparable(name, expected.said[name]), name
    slowest = max(found.seconds, key=found.seconds.__getitem__)
    assert found.seconds[slowest] < 45, f"{slowest} took {found.seconds[slowest]:.0f} s: a body was waited for"


def test_a_job_that_was_just_accepted_is_stopped(ours):
    """MONAI Label knows no process of it yet, and would let it run and refuse the next."""
    running = ours.url + "/train/?check_if_running=true"
    until(lambda: requests.get(running, timeout=30).status_code == 404, "a job runs", 60)
    for _ in range(5):
        begun = requests.post(ours.url + "/train/build_index", json={}, timeout=30)
        stopped = requests.delete(ours.url + "/train/", timeout=30)
        assert begun.status_code == stopped.status_code == 200
        assert (stopped.json()["id"], stopped.json()["status"]) == (begun.json()["id"], "STOPPED")


def test_a_job_whose_process_starts_late_is_stopped(monkeypatch):
    """As on a busy machine, where starting a process takes a second."""
    from monailabel.utils.async_tasks import utils

    from replica_detection_server.stock import jobs

    task, processes, begun = {"id": "late", "status": "SUBMITTED"}, {}, []
    monkeypatch.setitem(utils.background_tasks, "train", [task])
    monkeypatch.setitem(utils.background_processes, "train", processes)

    def begin() -> None:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        processes["late"] = begun[0]
        task["status"] = "RUNNING"

    late = threading.Timer(0.5, begin)
    late.start()
    stopped = jobs.stop("train")
    late.join()
    try:
        assert stopped is not None and stopped["id"] == "late" and task["status"] == "STOPPED"
        assert begun[0].wait(10) != 0
    finally:
        begun[0].kill()
    assert jobs.stop("train") is None


# -------------------------------------------------------------------------------------------------- logging in, options


def test_the_login_of_the_module_for_slicer(keyed, ours, tmp_path):
    """It asks /auth/ first, and its user where that says so: for the reader's name and the key."""
    made = monailabel.client.client
    assert made.MONAILabelClient(keyed.url, str(tmp_path)).auth_enabled() is True
    assert made.MONAILabelClient(ours.url, str(tmp_path)).auth_enabled() is False
    for name, password in (("anna", BERND), ("anna", "wrong"), ("carla", ANNA)):
        with pytest.raises(made.MONAILabelClientException) as refused:
            made.MONAILabelClient(keyed.url, str(tmp_path)).auth_token(name, password)
        assert refused.value.status_code == 401
    client = made.MONAILabelClient(keyed.url, str(tmp_path))
    assert client.auth_valid_token() is False
    client.update_auth(client.auth_token("anna", ANNA))
    assert client.auth_valid_token() is True


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_filename": "other.pt"}, "weights"),
        ({"roi_size": [32, 32, 32]}, "patches"),
        ({"result_extension": ".seg.nrrd"}, ".nrrd"),
        ({"points": [[1, 2, 3]]}, "points"),
        ({"result_write_to_file": False}, "file"),
    ],
)
def test_options_of_an_inference_that_cannot_be_had(ours, tmp_path, options, reason):
    client = monailabel.client.client.MONAILabelClient(ours.url, str(tmp_path))
    with pytest.raises(monailabel.client.client.MONAILabelClientException) as refused:
        client.infer("vessels", "syn_000", options)
    assert (
        "Status: 422" in refused.value.msg and reason in refused.value.msg and next(iter(options)) in refused.value.msg
    )


@pytest.mark.parametrize(
    ("trainer", "options", "reason"),
    [
        ("build_index", {"max_epochs": 7}, "once"),
        ("encoder", {"val_split": 0.5}, "a fifth of the patients"),
        ("encoder", {"train_batch_size": 4}, "batch"),
        ("segmentation", {"tracking": "mlflow"}, "recorded on this server"),
        ("segmentation", {"pretrained": "yes"}, "it is true"),
    ],
)
def test_options_of_a_training_that_cannot_be_had(ours, tmp_path, trainer, options, reason):
    client = monailabel.client.client.MONAILabelClient(ours.url, str(tmp_path))
    with pytest.raises(monailabel.client.client.MONAILabelClientException) as refused:
        client.train_start(trainer, options)
    assert "Status: 422" in refused.value.msg and reason in refused.value.msg


def test_epochs_and_weights_to_begin_with_in_our_words():
    from replica_detection_server.stock.task_options import translated

    offered = {"epochs", "restart", "early_stop_patience"}
    told = {**TRAINING_OPTIONS, "max_epochs": 7, "pretrained": False, "early_stop_patience": 3}
    assert translated({k: told[k] for k in told if k not in ("multi_gpu", "gpus")}, offered) == {
        "restart": True,
        "epochs": 7,
        "early_stop_patience": 3,
    }


def test_patience_of_a_training():
    from replica_detection_server.lib.trainers.validation import LARGEST_EPOCHS, patience

    assert [patience({"early_stop_patience": n}, 10) for n in (-1, 0, 3)] == [LARGEST_EPOCHS, LARGEST_EPOCHS, 3]
    assert patience({}, 10) == 10


def test_the_largest_part_of_each_label(tmp_path):
    """Every other part is gone; labels do not count as one part."""
    import nibabel as nib
    import numpy as np

    from replica_detection_server.lib.infers.segmentation import Segmentation

    image = tmp_path / "image.nii.gz"
    made = volume(7, (48, 48, 48))
    write(image, made)
    whole, _ = Segmentation("vessels", "")({"image": str(image)})
    largest, found = Segmentation("vessels", "")({"image": str(image), "largest_cc": True, "result_dtype": "uint16"})
    before, after = (np.asarray(nib.load(file).dataobj) for file in (whole, largest))
    from scipy.ndimage import label

    for value in found["label_names"].values():
        parts, count = label(before == value, np.ones((3, 3, 3)))
        assert label(after == value, np.ones((3, 3, 3)))[1] == min(count, 1)
        assert np.count_nonzero(after == value) == max(np.bincount(parts.ravel())[1:], default=0)
    assert after.dtype == np.uint16
