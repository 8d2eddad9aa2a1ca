"""Key files with roles, hashes and an end, the command that makes a line, and what wrong keys cost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime, timedelta

import pytest

pytest.importorskip("fastapi", reason="the server needs it: requirements-server-lean.txt")

from starlette.responses import JSONResponse

from replica_detection.errors import InputError
from replica_detection_server.access import hashing_queue, keys, wrong_key_delays
from replica_detection_server.access.authentication import Authentication, Keyring
from replica_detection_server.access.identity import ROLES
from replica_detection_server.access.keys import ApiKeys, KeyOwner, Scrypt, made_key
from replica_detection_server.access.wrong_key_delays import Delays
from Server.asgi_calls import call

KEY, OTHER = "a" * 32, "b" * 32


def _today() -> date:
    """Asked for where it is needed: a suite may begin before midnight and end behind it."""
    return datetime.now(UTC).date()


@pytest.fixture
def cheap(monkeypatch):
    """Hashes that take little time."""
    monkeypatch.setattr(keys, "COST", 1024)


def _keys(tmp_path, *lines: str) -> ApiKeys:
    path = tmp_path / "keys"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ApiKeys.read(path)


# ------------------------------------------------------------------------------------------------------------- lines


def test_roles_and_days(tmp_path):
    found = _keys(tmp_path, f"anna:{KEY}", f"Dr. Bernd : {OTHER}   expires=2999-01-31 role=admin")
    assert found.owner(KEY) == KeyOwner("anna", "reader", None)
    assert found.owner(OTHER) == KeyOwner("Dr. Bernd", "admin", date(2999, 1, 31))


def test_a_key_opens_until_the_end_of_its_last_day(tmp_path):
    today = _today()
    yesterday = today - timedelta(days=1)
    found = _keys(tmp_path, f"old:{KEY} expires={yesterday}", f"last:{OTHER} expires={today}")
    assert found.reader(KEY) is None and found.owner(KEY).name == "old"
    assert found.reader(OTHER) == "last"
    assert any("old has expired" in warning for warning in found.warnings())


def test_without_an_administrator_the_start_says_so(tmp_path):
    assert any("role=admin" in warning for warning in _keys(tmp_path, f"anna:{KEY}").warnings())
    assert _keys(tmp_path, f"anna:{KEY} role=admin").warnings() == []


def test_hashed_keys(tmp_path, cheap):
    key, line = made_key("anna", "trainer", date(2999, 1, 31), hashed=True)
    assert key not in line and key.partition(".")[2] not in line
    found = _keys(tmp_path, line, f"bernd:{KEY}")
    assert found.owner(key) == KeyOwner("anna", "trainer", date(2999, 1, 31))
    assert found.reader(KEY) == "bernd"
    for wrong in (key[:-1], f"{key}x", key.partition(".")[0], line.partition(":")[2], line, key.replace(".", ":"), ""):
        assert found.owner(wrong) is None, wrong


def test_no_key_is_made_whose_last_day_has_passed():
    with pytest.raises(ValueError, match="has passed"):
        made_key("anna", expires=_today() - timedelta(days=1))
    today = _today()
    assert f"expires={today}" in made_key("anna", expires=today)[1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_a_pipe_as_key_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "keys")
    program = "import sys; from pathlib import Path; from replica_detection_server.access.keys import ApiKeys; "
    command = [sys.executable, "-c", program + "ApiKeys.read(Path(sys.argv[1]))", str(tmp_path / "keys")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert done.returncode == 1 and "is not a regular file" in done.stderr


def test_a_hashed_key_is_hashed_once(tmp_path, cheap, monkeypatch):
    key, line = made_key("anna", hashed=True)
    found, asked = _keys(tmp_path, line), []
    hashed = Scrypt.hashed
    monkeypatch.setattr(Scrypt, "hashed", lambda self, given: asked.append(given) or hashed(self, given))
    assert [found.reader(key) for _ in range(50)] == ["anna"] * 50
    assert len(asked) == 1
    assert isinstance(found.quick(key), KeyOwner)


def test_a_wrong_key_costs_no_hash_unless_it_begins_as_a_right_one(tmp_path, cheap, monkeypatch):
    made = [made_key(f"r{n}", hashed=True) for n in range(20)]
    found, asked = _keys(tmp_path, *(line for _, line in made)), []
    hashed = Scrypt.hashed
    monkeypatch.setattr(Scrypt, "hashed", lambda self, given: asked.append(given) or hashed(self, given))
    for wrong in ("0" * 16 + "." + "x" * 43, "x" * 43, "."):
        assert found.owner(wrong) is None
    assert asked == []
    assert found.owner(f"{made[7][0].partition('.')[0]}.{'x' * 43}") is None
    assert len(asked) == 1


def test_what_is_kept_of_right_keys_is_bounded(tmp_path, cheap, monkeypatch):
    monkeypatch.setattr(keys, "CACHED", 3)
    made = [made_key(f"r{n}", hashed=True) for n in range(6)]
    found = _keys(tmp_path, *(line for _, line in made))
    for key, _ in made:
        assert found.reader(key)
    assert len(found._known) == 3
    assert not any(key in repr(found) or key in str(vars(found)) for key, _ in made)


@pytest.mark.parametrize(
    "line",
    [
        f"r:{KEY} role=boss",
        f"r:{KEY} role=",
        f"r:{KEY} role=admin role=admin",
        f"r:{KEY} expires=2027-02-30",
        f"r:{KEY} expires=soon",
        f"r:{KEY} {OTHER}",
        "r:scrypt$",
        "r:scrypt$32768$8$1$salt",
        f"r:scrypt$3000$8$1$0123456789abcdef${'A' * 43}",
        f"r:scrypt$1$8$1$0123456789abcdef${'A' * 43}",
        f"r:scrypt$4194304$32$1$0123456789abcdef${'A' * 43}",
        f"r:scrypt$32768$8$99$0123456789abcdef${'A' * 43}",
        f"r:scrypt$32768$0$1$0123456789abcdef${'A' * 43}",
        f"r:scrypt$32768$8$1$0123456789abcdef${'A' * 20}",
    ],
)
def test_lines_that_cannot_be(tmp_path, line):
    with pytest.raises(InputError, match="line 2") as error:
        _keys(tmp_path, f"first:{'c' * 32}", line)
    for word in (KEY, OTHER, "A" * 20):
        assert word not in str(error.value)


def test_names_and_keys_that_come_twice(tmp_path, cheap):
    _, line = made_key("anna", hashed=True)
    for second in (line, f"anna:{KEY}", line.replace("anna:", "bernd:")):
        with pytest.raises(InputError, match="line 2 repeats"):
            _keys(tmp_path, line, second)


# ----------------------------------------------------------------------------------------------------------- command


def _command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "replica_detection", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_the_command_makes_a_line_that_its_key_opens(tmp_path):
    done = _command("make-key", "Dr. Anna", "--role", "admin", "--expires", "2999-01-31", "--hashed")
    assert done.returncode == 0, done.stderr
    said = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    key, line = said
    assert key not in line
    assert _keys(tmp_path, line).owner(key) == KeyOwner("Dr. Anna", "admin", date(2999, 1, 31))


def test_the_command_refuses_what_no_line_can_hold():
    for given in (["a:b"], ["anna", "--role", "boss"], ["anna", "--expires", "31.1.2027"], ["a\nb:c"]):
        done = _command("make-key", *given)
        assert done.returncode == 2 and "Traceback" not in done.stderr, given


# -------------------------------------------------------------------------------------------------------------- gate


def _gate(tmp_path, *lines: str) -> Authentication:
    async def inside(scope, receive, send):
        identity = scope["state"]["identity"]
        await JSONResponse({"reader": identity.reader, "role": ROLES[identity.rank]})(scope, receive, send)

    return Authentication(inside, Keyring(_keys(tmp_path, *lines)))


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_what_a_role_of_a_key_is(tmp_path, cheap):
    hashed, line = made_key("tom", "trainer", hashed=True)
    door = _gate(tmp_path, f"anna:{KEY}", line, f"ada:{OTHER} role=admin")

    async def ask() -> list[str]:
        replies = [await call(door, headers=_bearer(key)) for key in (KEY, hashed, OTHER)]
        return [json.loads(reply.body)["role"] for reply in replies]

    assert asyncio.run(ask()) == ["annotator", "trainer", "admin"]


def test_an_expired_key_is_told_so(tmp_path):
    door = _gate(tmp_path, f"anna:{KEY} expires={_today() - timedelta(days=1)}", f"ada:{OTHER}")
    reply = asyncio.run(call(door, headers=_bearer(KEY)))
    assert reply.status == 401 and b"expired" in reply.body and reply.headers["www-authenticate"] == "Bearer"


def test_an_unknown_key_is_told_apart_from_none(tmp_path):
    app = _gate(tmp_path, f"anna:{KEY}")
    unknown, none = (asyncio.run(call(app, headers=h)) for h in (_bearer("c" * 32), {}))
    assert (unknown.status, json.loads(unknown.body)["detail"]) == (401, "This API key is not known.")
    assert none.status == 401 and "needs an API key" in json.loads(none.body)["detail"]


def test_the_delay_grows_and_ends():
    grown = [Delays.seconds(n) for n in range(1, 40)]
    assert grown[: wrong_key_delays.FREE_TRIES] == [0] * wrong_key_delays.FREE_TRIES
    assert (
        grown == sorted(grown) and grown[wrong_key_delays.FREE_TRIES] > 0 and grown[-1] == wrong_key_delays.MOST_SECONDS
    )
    assert Delays.seconds(10**9) == wrong_key_delays.MOST_SECONDS


def test_wrong_keys_cost_time_and_right_ones_do_not(tmp_path, monkeypatch):
    """From the same address, while refusals of it wait."""
    monkeypatch.setattr(wrong_key_delays, "FIRST_SECONDS", 3.0)
    monkeypatch.setattr(wrong_key_delays, "MOST_SECONDS", 3.0)
    door = _gate(tmp_path, f"anna:{KEY}")

    async def timed(key: str, address: str) -> tuple[int, float]:
        start = time.monotonic()
        headers = _bearer(key) if key else {}
        return (await call(door, headers=headers, address=address)).status, time.monotonic() - start

    async def scene() -> None:
        for n in range(wrong_key_delays.FREE_TRIES):
            status, took = await timed(f"wrong-{n}", "192.0.2.1")
            assert status == 401 and took < 2
        waiting = asyncio.create_task(timed("wrong", "192.0.2.1"))
        await asyncio.sleep(0.1)
        for key, address, expected in (
            (KEY, "192.0.2.1", 200),
            ("wrong", "192.0.2.2", 401),
            ("", "192.0.2.1", 401),
        ):
            status, took = await timed(key, address)
            assert (status, took < 2) == (expected, True), (address, took)
        assert not waiting.done()
        status, took = await waiting
        assert status == 401 and took > 2.5

    asyncio.run(scene())


def test_waiting_refusals_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(wrong_key_delays, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(wrong_key_delays, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(wrong_key_delays, "WAITING_EACH", 10)
    door = _gate(tmp_path, f"anna:{KEY}")

    async def scene() -> list[int]:
        asked = [call(door, headers=_bearer("wrong")) for _ in range(60)]
        return [reply.status for reply in await asyncio.gather(*asked)]

    found = asyncio.run(scene())
    assert found.count(429) == 60 - wrong_key_delays.FREE_TRIES - wrong_key_delays.WAITING_EACH
    assert door.delays._waiting == 0


def test_addresses_are_remembered_up_to_a_bound_and_networks_count_as_one(monkeypatch):
    monkeypatch.setattr(wrong_key_delays, "REMEMBERED", 100)
    monkeypatch.setattr(wrong_key_delays, "MOST_SECONDS", 0.0)
    counted = Delays()

    async def scene() -> None:
        for n in range(300):
            await counted.wrong_key(f"10.0.{n // 256}.{n % 256}")
        for n in range(50):
            await counted.wrong_key(f"2001:db8::{n:x}")

    asyncio.run(scene())
    assert len(counted._tries) == 100
    assert counted._tries["2001:db8::/64"].wrong == 50


def test_checks_of_hashes_run_two_at_a_time_and_wait_up_to_a_bound(tmp_path, cheap, monkeypatch):
    """Known keys and plain ones pass meanwhile."""
    monkeypatch.setattr(hashing_queue, "WAITING", 4)
    known, first = made_key("anna", hashed=True)
    salt = (made := made_key("bernd", hashed=True))[0].partition(".")[0]
    door = _gate(tmp_path, first, made[1], f"ada:{KEY}")
    go, now, most = threading.Event(), [0], [0]
    hashed = Scrypt.hashed

    def slow(self, given):
        if given.startswith(salt):
            now[0] += 1
            most[0] = max(most[0], now[0])
            assert go.wait(60)
            now[0] -= 1
        return hashed(self, given)

    monkeypatch.setattr(Scrypt, "hashed", slow)

    async def scene() -> list[int]:
        assert (await call(door, headers=_bearer(known))).status == 200
        waiting = [
            asyncio.create_task(call(door, headers=_bearer(f"{salt}.wrong-{n}"), address=f"10.0.0.{n}"))
            for n in range(10)
        ]
        await asyncio.sleep(0.2)
        for key in (known, KEY):
            assert (await call(door, headers=_bearer(key))).status == 200
        go.set()
        return sorted([reply.status for reply in await asyncio.gather(*waiting)])

    assert asyncio.run(scene()) == [401] * 6 + [503] * 4
    assert most[0] <= hashing_queue.AT_ONCE


@pytest.mark.parametrize("addresses", ["same", "others", "always new ones"])
def test_a_right_hashed_key_is_next_however_many_wrong_ones_wait(tmp_path, cheap, monkeypatch, addresses):
    """A few hashes at most are made before it, those that run already included."""
    key, line = made_key("anna", hashed=True)
    door = _gate(tmp_path, line)
    done, stop = [], threading.Event()
    hashed = Scrypt.hashed

    def slow(self, given):
        time.sleep(0.02)
        done.append(given)
        return hashed(self, given)

    monkeypatch.setattr(Scrypt, "hashed", slow)

    async def guess(n: int) -> None:
        tried = 0
        while not stop.is_set():
            tried += 1
            where = {"same": "10.0.0.1", "others": f"10.0.1.{n}"}.get(addresses, f"10.1.{n}.{tried % 256}")
            await call(door, headers=_bearer(f"{keys.key_id(key)}.{n}-{tried}"), address=where)

    async def scene() -> list[int]:
        guessing = [asyncio.create_task(guess(n)) for n in range(60)]
        before = []
        for _ in range(5):
            await asyncio.sleep(0.2)
            door.keyring.keys = ApiKeys.read(tmp_path / "keys")
            count = len(done)
            assert (await call(door, headers=_bearer(key), address="10.0.0.1")).status == 200
            before.append(len(done) - count)
        stop.set()
        for task in guessing:
            task.cancel()
        await asyncio.gather(*guessing, return_exceptions=True)
        return before

    assert max(asyncio.run(scene())) <= 2 * hashing_queue.AT_ONCE


def test_one_client_has_one_hash_made_at_a_time(tmp_path, cheap, monkeypatch):
    key, line = made_key("anna", hashed=True)
    door = _gate(tmp_path, line)
    go, running = threading.Event(), []
    hashed = Scrypt.hashed
    monkeypatch.setattr(Scrypt, "hashed", lambda self, g: (running.append(g), go.wait(60)) and hashed(self, g))

    async def scene() -> list[int]:
        wrong = [
            asyncio.create_task(call(door, headers=_bearer(f"{keys.key_id(key)}.{n}"), address=f"2001:db8::{n}"))
            for n in range(5)
        ]
        await asyncio.sleep(0.2)
        assert len(running) == 1
        right = asyncio.create_task(call(door, headers=_bearer(key), address="10.0.0.1"))
        await asyncio.sleep(0.2)
        assert len(running) == 2 and running[1] == key
        go.set()
        return [reply.status for reply in await asyncio.gather(right, *wrong)]

    assert asyncio.run(scene()) == [200] + [401] * 5
    assert not door.turns._busy and not door.turns._waiting


def test_a_hash_that_a_caller_gave_up_leaves_its_place(tmp_path, cheap):
    key, line = made_key("anna", hashed=True)
    door = _gate(tmp_path, line)

    async def scene() -> None:
        asked = [asyncio.create_task(call(door, headers=_bearer(f"{keys.key_id(key)}.{n}"))) for n in range(5)]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert (await call(door, headers=_bearer(key))).status == 200

    asyncio.run(scene())
    assert not door.turns._busy and not door.turns._waiting


def test_a_key_that_was_right_is_not_hashed_again_after_a_reload(tmp_path, cheap, monkeypatch):
    """As long as its line is the same: role and end may change, another hash or none may not."""
    key, line = made_key("anna", hashed=True)
    used = _keys(tmp_path, line)
    assert used.reader(key) == "anna"
    with monkeypatch.context() as patched:
        patched.setattr(Scrypt, "hashed", lambda self, given: pytest.fail("hashed again"))
        again = _keys(tmp_path, f"{line} role=admin").knowing(used)
        assert again.owner(key) == KeyOwner("anna", "admin")
    other = made_key("anna", hashed=True)[1].rpartition("$")[2]
    for gone in (f"anna:{KEY}", f"{line.rpartition('$')[0]}${other}"):
        assert _keys(tmp_path, gone).knowing(again).owner(key) is None


def test_signing_in_with_a_hashed_key_takes_its_turn(tmp_path, cheap):
    """A password is a key: without the gate's turns, wrong ones would take up the threads of all routes."""
    from types import SimpleNamespace

    from replica_detection_server.stock import overview

    key, line = made_key("anna", hashed=True)
    door = _gate(tmp_path, line)
    state = SimpleNamespace(realm=None, keyring=door.keyring, gate=door)
    request = SimpleNamespace(app=SimpleNamespace(state=state), scope={"client": ("10.0.0.1", 1)})
    turns_taken = []
    run = door.turns.run

    async def noted(client, line, check):
        turns_taken.append((client, line))
        return await run(client, line, check)

    door.turns.run = noted
    form = SimpleNamespace(username="anna", password=key)
    assert asyncio.run(overview.token(request, form))["access_token"] == key
    assert turns_taken == [("10.0.0.1", keys.key_id(key))]


def test_very_long_keys_are_nobodys(tmp_path):
    door = _gate(tmp_path, f"anna:{KEY}")
    assert asyncio.run(call(door, headers=_bearer("x" * 100_000))).status == 401


def test_two_keys_in_one_request_open_nothing(tmp_path):
    door = _gate(tmp_path, f"anna:{KEY}", f"bernd:{OTHER}")
    for first, second in ((KEY, OTHER), (KEY, "wrong"), ("wrong", KEY)):
        reply = asyncio.run(call(door, headers={**_bearer(first), "X-API-Key": second}))
        assert reply.status == 401 and b"one key" in reply.body
    assert asyncio.run(call(door, headers={"Authorization": "Basic eDp5", "X-API-Key": KEY})).status == 200


def test_a_name_has_one_form_of_accents_whoever_wrote_it(tmp_path):
    door = _gate(tmp_path, f"Mu\u0308ller:{KEY}")
    assert json.loads(asyncio.run(call(door, headers=_bearer(KEY))).body)["reader"] == "M\u00fcller"
    with pytest.raises(InputError, match="line 2 repeats"):
        _keys(tmp_path, f"Mu\u0308ller:{KEY}", f"M\u00fcller:{OTHER}")
