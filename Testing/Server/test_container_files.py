"""What can be said of Dockerfile and compose.yaml without building: linters, and what docs/server.md promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from replica_detection.cli import app

yaml = pytest.importorskip("yaml", reason="part of the server set: requirements-server-lean.txt")

PROJECT = Path(__file__).resolve().parents[2]
YAML_RULES = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and what follows each."""
    text = "\n".join(
        line for line in (PROJECT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))


def test_linters_have_nothing_to_say():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this platform: requirements-test.txt")
    docker = subprocess.run([hadolint, str(PROJECT / "Dockerfile")], capture_output=True, encoding="utf-8")
    assert docker.returncode == 0 and not docker.stdout, docker.stdout
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", YAML_RULES, str(PROJECT / "compose.yaml")]
    found = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert found.returncode == 0, found.stdout


def test_image_runs_as_nobody_in_particular(steps):
    user = [rest for name, rest in steps if name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "by number, so that the host can check that it is not root"
    after = steps[[name for name, _ in steps].index("USER") :]
    assert not {"RUN", "COPY"} & {name for name, _ in after}


def test_image_holds_nothing_but_this_project_and_packages(steps):
    assert "ADD" not in {name for name, _ in steps}
    assert not any("://" in rest for _, rest in steps)
    assert not re.search(r"\b(curl|wget|apt-get|eval|sh)\b", " ".join(rest for name, rest in steps if name == "RUN"))
    allowed = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    copied = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert set(copied) == allowed and all((PROJECT / source).exists() for source in copied)


def test_started_programs_are_lists_and_know_their_options(steps, compose):
    entry, default = (json.loads(next(rest for name, rest in steps if name == kind)) for kind in ("ENTRYPOINT", "CMD"))
    assert entry[:2] == ["replica-detection", "serve"]
    group = typer.main.get_command(app)
    known = {option for parameter in group.commands["serve"].params for option in parameter.opts}
    for command in (default, *(service["command"] for service in compose["services"].values())):
        words = (*entry[2:], *command)
        assert {w for w in words if w.startswith("--")} <= known
        assert "--insecure-no-authentication" not in words
        # Everything that is listened to from outside asks for a key.
        assert words[words.index("--host") + 1] == "0.0.0.0"
        assert words[words.index("--api-key-file") + 1] == "/run/secrets/keys"


def test_folders_of_the_program_are_those_that_are_mounted(steps, compose):
    entry = json.loads(next(rest for name, rest in steps if name == "ENTRYPOINT"))
    for service in compose["services"].values():
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert set(mounts) == {word for word in entry if word.startswith("/")}
        assert mounts["/training"]["read_only"] is True
        # A folder that is not there is an error, and not made by root.
        assert all(mount["type"] == "bind" and "create_host_path" not in str(mount) for mount in mounts.values())
        assert all(mount["source"].startswith("${") and ":?" in mount["source"] for mount in mounts.values())


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
def test_container_has_few_rights(compose, profile):
    service = compose["services"][profile]
    assert service["profiles"] == [profile]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "cap_add", "pid", "environment", "devices"} & set(service)
    assert service["secrets"] == ["keys"] and set(compose["secrets"]["keys"]) == {"file"}
    assert ("deploy" in service) == (profile == "cuda")
    default = re.fullmatch(r"\$\{SERVER_USER:-(\d+):(\d+)\}", service["user"])
    assert default and "0" not in default.groups()
