"""A real server in a process of its own, on a free loopback port, for the tests of this folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

APP = Path(__file__).resolve().parents[2] / "MonaiLabelApp"
TIMEOUT = 90
# `serve` with the main.py of another folder.
OTHER_APP = (
    "import sys; from pathlib import Path; from replica_detection_server.serving import launch; "
    "launch.MAIN = Path(sys.argv.pop(1)) / 'main.py'; from replica_detection.cli import main; main()"
)


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`; `ready_seconds` is the time from its start to its first answer."""

    url: str
    port: int
    process: subprocess.Popen
    log: Path
    data: Path
    studies: Path
    ready_seconds: float

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the server's own process."""
        import psutil

        return psutil.Process(self.pid).memory_info().rss

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running_server(
    studies: Path,
    *,
    work: Path,
    training: Path | None = None,
    index: Path | None = None,
    data: Path | None = None,
    conf: Mapping[str, object] | None = None,
    hardened: bool = False,
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    app: Path = APP,
    port: int | None = None,
    under: Sequence[str] = (),
) -> Iterator[Server]:
    """Starts the server, waits until it answers, and ends it (that process and its children only).

    Args:
        studies: folder of synthetic images.
        work: an existing folder of the test for logs, sessions and, without `data`, the server's data.
        conf: further `--conf` pairs (plain) or `--key value` options (hardened), such as profile or validation.
        hardened: `replica-detection serve` instead of MONAI Label's own launch.
        env: on top of this process's environment.
        args: appended to the command line.
        port: where it listens; a free port if not given.
        under: a program that runs the server, such as strace with its options.
    """
    port = port or free_port()
    data = work / "data" if data is None else data
    pairs = {"training": training, "index": index, "data": data, **(conf or {})}
    options = [(key, str(value)) for key, value in pairs.items() if value is not None]
    common = ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    if hardened:
        named = [word for key, value in options for word in (f"--{key.replace('_', '-')}", value)]
        program = ["-m", "replica_detection"] if app == APP else ["-c", OTHER_APP, str(app)]
        command = [sys.executable, *program, "serve", *common, *named, *args]
    else:
        named = [word for key, value in options for word in ("--conf", key, value)]
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), *common, *named, *args]
    environment = {
        **os.environ,
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "TMPDIR": str(_folder(work / "tmp")),
        **(env or {}),
    }
    command = [*under, *command]
    log = work / f"server-{port}.log"
    start = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=work
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield Server(url, port, process, log, data, studies, time.perf_counter() - start)
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a server and what it started; asks first, then kills."""
    import psutil

    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)
    for child in children:
        if child.is_running():
            child.kill()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the server answers at all: with authentication the answer is a refusal."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            text = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise AssertionError(f"the server ended with {process.returncode}:\n{text}")
        try:
            urllib.request.urlopen(url + "/info/", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer after {TIMEOUT} s:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
