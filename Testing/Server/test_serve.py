"""`replica-detection serve`: what it refuses to start with, what it says, and how it ends."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import psutil
import requests

from Core.made_up import cohort, volume, write
from replica_detection.cli import app
from replica_detection.cli.console import run_guarded
from replica_detection.cli.serve import FIELDS, serve
from replica_detection.errors import ConfigurationError
from replica_detection_server.serving.serve_options import ServeOptions
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.util.addresses import is_loopback
from Server.conftest import until
from Server.running import APP, running_server, stop

ODD = Path(__file__).with_name("odd_app")
PROJECT = APP.parent
KEY = "a-long-key-for-these-tests"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohorts")
    cohort(folder / "training", 6, prefix="trn")
    return folder


@pytest.fixture
def studies(tmp_path) -> Path:
    return cohort(tmp_path / "studies", 2, 200, "syn")


@pytest.fixture
def keys(tmp_path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"r1:{KEY}\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def _serve(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and message of a call that ends by itself."""
    monkeypatch.setattr(sys, "argv", ["replica-detection", "serve", *arguments])
    code = run_guarded(app)
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key-file"),
        (["--host", "::"], 2, "--insecure-no-authentication"),
        (["--host", "gpu.hospital.example"], 2, "reached from other machines"),
        (["--api-key-file", "KEYS", "--realm-uri", "https://x"], 2, "exclude each other"),
        (["--api-key-file", "KEYS", "--insecure-no-authentication"], 2, "contradicts"),
        (["--api-key-file", "none"], 1, "cannot be read"),
        (["--realm-uri", "keycloak/realms/x"], 2, "https://"),
        (["--tls-certificate", "KEYS"], 2, "go together"),
        (["--tls-certificate", "none", "--tls-key", "KEYS"], 1, "does not exist"),
        (["--host", "256.1.1.1", "--api-key-file", "KEYS"], 2, "no address"),
        (["--port", "70000"], 2, "--port"),
        (["--max-upload-mb", "0"], 2, "--max-upload-mb"),
        (["--queue", "-1"], 2, "--queue"),
        (["--data", "TRAINING/data"], 2, "lies inside"),
        (["--index", "STUDIES/none.rdindex", "--training", ""], 1, "no finished index"),
        (["--embedding", "nonsense"], 2, "unknown embedding 'nonsense'"),
        (["--embedding", "contrastive:STUDIES/none"], 1, "does not exist"),
        (["--embedding", "trained"], 2, "no encoder was trained on this server"),
        (["--slice-embedding", "medicalnet_gap"], 2, "medicalnet_gap:FILE"),
    ],
)
def test_arguments_that_cannot_be(monkeypatch, capsys, cohorts, studies, keys, tmp_path, arguments, code, words):
    places = {"KEYS": keys, "TRAINING": cohorts / "training", "STUDIES": studies}
    for name, path in places.items():
        arguments = [a.replace(name, str(path)) for a in arguments]
    given = ["--studies", str(studies), "--training", str(cohorts / "training"), "--data", str(tmp_path / "data")]
    if "--training" in arguments:
        given, arguments = [*given[:2], *given[4:]], arguments[: arguments.index("--training")]
    found, said = _serve(monkeypatch, capsys, *given, *arguments)
    assert (found, words in said) == (code, True), said
    assert "Traceback" not in said and KEY not in said


def test_nothing_to_compare_with(monkeypatch, capsys, studies):
    code, said = _serve(monkeypatch, capsys, "--studies", str(studies))
    assert code == 2 and "nothing to compare with" in said


def test_a_port_that_is_taken(monkeypatch, capsys, cohorts, studies, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = ["--studies", str(studies), "--training", str(cohorts / "training"), "--data", str(tmp_path / "data")]
        code, said = _serve(monkeypatch, capsys, *given, "--port", port)
    assert code == 1 and f"port {port}" in said
    assert not (tmp_path / "data").exists()


def test_what_is_worth_a_warning(keys):
    """Addresses that others reach are only described here: no test listens on one."""
    assert ServeOptions().check() == []
    assert any("unencrypted" in w for w in ServeOptions(host="0.0.0.0", api_key_file=keys).check())
    assert any("Everyone" in w for w in ServeOptions(host="0.0.0.0", without_authentication=True).check())
    assert ServeOptions(host="0.0.0.0", api_key_file=keys, tls_certificate=keys, tls_key=keys).check() == []
    keys.chmod(0o644)
    assert any("chmod 600" in w for w in ServeOptions(api_key_file=keys).check())


def test_every_setting_is_an_option_with_the_same_default():
    options = {FIELDS.get(p.name, p.name): p.default for p in inspect.signature(serve).parameters.values()}
    settings = [*dataclasses.fields(Configuration), *dataclasses.fields(ServeOptions)]
    assert sorted(options) == sorted(f.name for f in settings)
    required = {f.name for f in settings if f.default is dataclasses.MISSING}
    assert required == {"studies", "data", "index"}
    # A repeatable option that is not given is None.
    defaults = {f.name: None if f.default == () else f.default for f in settings if f.name not in required}
    assert {name: options[name] for name in defaults} == defaults


def test_the_default_is_this_machine_alone_but_not_at_monai_label():
    from monailabel.main import Main

    assert is_loopback(ServeOptions().host)
    assert not is_loopback(Main().args_parser().parse_args(["start_server"]).host)
    with pytest.raises(ConfigurationError):
        ServeOptions(host=Main().args_parser().parse_args(["start_server"]).host).check()


def test_monai_label_does_not_start_with_its_setting_for_origins(cohorts, studies, tmp_path):
    """Ours starts in the same environment: see the fixture of test_security_traps.py."""
    app_folder = tmp_path / "app"
    app_folder.mkdir()
    (app_folder / "main.py").write_bytes((ODD / "main.py").read_bytes())
    with (
        pytest.raises(AssertionError, match="JSON serializable"),
        running_server(
            studies,
            work=tmp_path,
            training=cohorts / "training",
            app=app_folder,
            env={"MONAI_LABEL_CORS_ORIGINS": '["http://a.example"]', "ODD_BASE": "stock"},
        ),
    ):
        pass


# ---------------------------------------------------------------------------------------------------- start and end


def _started(studies: Path, cohorts: Path, data: Path, log: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "replica_detection", "serve", "--studies", str(studies), "--port", "0"]
    command += ["--training", str(cohorts / "training"), "--data", str(data), *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))


def _url(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serves (http\S+)", log.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_from_start_to_end(cohorts, studies, tmp_path, number):
    """What it prints, where it listens, that a second one is refused, and that it ends cleanly amid its work."""
    data, log = tmp_path / "data", tmp_path / "log"
    process = _started(studies, cohorts, data, log)
    try:
        url = _url(process, log)
        assert requests.get(url + "/info/", timeout=20).status_code == 200
        for words in ("this machine only", "nobody needs a key", "/reload", "1024 MiB", "Ctrl-C", str(data)):
            until(lambda w=words: w in log.read_text(encoding="utf-8"), f"{words} is not said", seconds=20)
        listening = [c for c in psutil.Process(process.pid).net_connections("inet") if c.status == "LISTEN"]
        assert [c.laddr.ip for c in listening] == ["127.0.0.1"]

        second = _started(studies, cohorts, data, tmp_path / "second")
        assert second.wait(60) == 1
        assert "another server uses" in (tmp_path / "second").read_text(encoding="utf-8")

        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(30) == 0, log.read_text(encoding="utf-8")
        assert not any(child.is_running() and child.status() != "zombie" for child in children)
        assert not (data / "tmp").exists()
        assert "Traceback" not in log.read_text(encoding="utf-8") and "ERROR" not in log.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            stop(process)


@pytest.mark.slow
def test_the_end_does_not_wait_for_a_computation(cohorts, studies, tmp_path):
    with running_server(
        studies,
        work=tmp_path,
        training=cohorts / "training",
        hardened=True,
        app=ODD,
        env={"ODD_BASE": "ours"},
    ) as server:
        params = {"params": '{"seconds": 300}'}

        def ask():
            with pytest.raises(requests.RequestException):
                requests.post(server.url + "/infer/slow?image=syn_000", data=params, timeout=60).raise_for_status()

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(1)
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(40) == 0
        print(f"ended {time.monotonic() - start:.1f} s after Ctrl-C, in the middle of a computation")
        thread.join()


@pytest.mark.slow
def test_monai_labels_own_launch_says_what_it_leaves_open(cohorts, studies, tmp_path):
    with running_server(studies, work=tmp_path, training=cohorts / "training") as server:
        assert "It leaves open" in server.log_text() and "/reload" in server.log_text()


@pytest.mark.slow
def test_an_installed_wheel_serves(cohorts, studies, tmp_path):
    """From a folder that holds no checkout, with nothing written where the package is installed."""
    run = {"check": True, "capture_output": True, "cwd": tmp_path}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheel")]
    source = tmp_path / "source"
    _copy_sources(source)
    subprocess.run([*pip, *build, str(source)], **run)
    wheel = next((tmp_path / "wheel").glob("*.whl"))
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], **run)
    before = _listed(installed)
    work = tmp_path / "work"
    work.mkdir()
    paths = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
    environment = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    # One measure: the kernels are compiled anew in this folder.
    conf = {"measures": "mae"}
    with running_server(
        studies, work=work, training=cohorts / "training", hardened=True, conf=conf, env=environment
    ) as server:
        assert requests.get(server.url + "/info/", timeout=20).json()["datastore"]["total"] == 2
        # The job process finds the package too.
        while any(j["state"] in ("queued", "running") for j in requests.get(server.url + "/replica/jobs").json()):
            time.sleep(0.2)
        assert requests.get(server.url + "/replica/status").json()["training"] == 6
    assert _listed(installed) == before


def _listed(folder: Path) -> list[Path]:
    """Without the compiled kernels, which Numba keeps beside their source where it may."""
    return sorted(p for p in folder.rglob("*") if "__pycache__" not in p.parts)


def _copy_sources(folder: Path) -> None:
    """What the wheel is built from, so that the build leaves nothing in the checkout."""
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder)
    for name in ("ReplicaDetection/replica_detection", "MonaiLabelApp"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "logs", "model"))


# ------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.slow
def test_info_while_comparisons_run(tmp_path):
    """Two clients compare images without a pause; meanwhile a third asks for /info/."""
    shape = (80, 80, 56)
    for n in range(8):
        write(tmp_path / "training" / f"trn_{n:03d}.nii.gz", volume(n, shape))
    studies = tmp_path / "studies"
    query = write(studies / "syn_000.nii.gz", volume(100, shape)).read_bytes()
    # Without the embedding, whose fit delays the start and whose comparison is short.
    conf = {"measures": "mae,rmse,ssim,ncc_aligned"}
    with running_server(studies, work=tmp_path, training=tmp_path / "training", hardened=True, conf=conf) as server:
        while any(j["state"] in ("queued", "running") for j in requests.get(server.url + "/replica/jobs").json()):
            time.sleep(0.2)
        compared: list[float] = []
        enough = threading.Event()

        def compare():
            while not enough.is_set():
                start = time.perf_counter()
                reply = requests.post(server.url + "/replica/compare", files={"file": ("q.nii.gz", query)}, timeout=120)
                if reply.status_code == 200:
                    compared.append(time.perf_counter() - start)

        threads = [threading.Thread(target=compare) for _ in range(2)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while not compared and time.monotonic() < end:
            time.sleep(0.1)
        waited = []
        session = requests.Session()
        for _ in range(40):
            start = time.perf_counter()
            assert session.get(server.url + "/info/", timeout=20).status_code == 200
            waited.append(time.perf_counter() - start)
            time.sleep(0.1)
        enough.set()
        for thread in threads:
            thread.join()
    assert len(compared) >= 2
    median, worst = statistics.median(waited), max(waited)
    print(
        f"/info/ during {len(compared)} comparisons (median {statistics.median(compared):.1f} s each): "
        f"median {median * 1000:.0f} ms, worst {worst * 1000:.0f} ms of {len(waited)}"
    )
    assert median < 1, waited
