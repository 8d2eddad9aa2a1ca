"""Thousands of damaged and hostile uploads: no file beside the upload is opened, nothing fails, memory stays bounded.

`python Testing/Server/fuzz_uploads.py --files 2000` starts a server under strace (Linux) and sends each file to
compare, infer and sessions; `--without-server` hands them to the check and the readers here, which takes seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Server.made_uploads import SHAPE, bare_png, packed_zeros, voxels, whole_files

# Names that a hostile header may give, beside those of sentinel files. None that a Python process opens as it starts:
# workers start at any time.
ELSEWHERE = ("/etc/shadow", "/dev/ptmx", "/dev/zero", "/proc/self/mem", "/nowhere/sentinel-absent")
META_NAMES = ("ElementDataFile", "elementdatafile", "Element Data File", "ElementDataFile ", " ElementDataFile")
NRRD_NAMES = ("data file", "datafile", "Data File", "DATA FILE", "data_file", "data  file", " data file")
META_FIELDS = (
    "HeaderSize",
    "Comment",
    "DimSize",
    "NDims",
    "ElementType",
    "CompressedData",
    "BinaryData",
    "Color",
    "Foo",
)
NRRD_FIELDS = (
    "byte skip",
    "line skip",
    "sizes",
    "dimension",
    "type",
    "block size",
    "encoding",
    "content",
    "kinds",
    "x",
)
VALUES = ("-1", "0", "7", "LIST", "LOCAL", "%03d 1 9 1", "99999999999", "20 16 12", "1e308", "nan", "True", "", "gzip")
ENDS = ("\n", "\n", "\n", "\r\n", "\r", "\n\n", "\v", "\0")
STRACE = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=open,openat,openat2", "-o")

Change = Callable[[random.Random, bytes, list[str]], bytes]


def sentinels(folder: Path) -> list[str]:
    """Files that hold voxels and that nothing may open, and the names by which headers may ask for them."""
    names = [*ELSEWHERE, *(f"{up}sentinel.raw" for up in ("", "../", "../../", "../../../", "./../"))]
    for place in (folder, folder / "outside"):
        place.mkdir(exist_ok=True, parents=True)
        (place / "sentinel.raw").write_bytes(voxels().tobytes())
        names.append(str(place / "sentinel.raw"))
    return names


def mutants(count: int, seed: int, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Pairs of a file name and its content, the same for the same seed and names."""
    rng, good = random.Random(seed), sorted(whole_files().items())
    for number in range(count):
        name, content = good[number % len(good)]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content = rng.choice(_changes(name))(rng, content, names)
        if rng.random() < 0.05:  # under the name of another format
            name = rng.choice(good)[0]
        yield name, content


def _changes(name: str) -> list[Change]:
    suffix = name.rpartition(".")[2]
    own: dict[str, list[Change]] = {
        "mha": [_line, _line, _reference, _reference, _number],
        "nrrd": [_line, _line, _reference, _reference, _number],
        "nii": [_nifti_field, _nifti_field],
        "gz": [_repacked, _repacked],
        "dcm": [_dicom_field, _dicom_field, _dicom_element],
        "png": [_png_size, _png_chunk],
        "jpg": [_jpeg_size],
    }
    return [_flip, _cut, _repeat, *own[suffix]]


def _flip(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(min(len(changed), rng.choice((64, 600, 10**9))))] = rng.choice(
            (0, 255, rng.randrange(256))
        )
    return bytes(changed)


def _cut(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    return content[: rng.randint(1, len(content))]


def _repeat(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    at = rng.randrange(min(len(content), 600))
    piece = content[at : at + rng.choice((1, 8, 40, 300))]
    return content[:at] + piece * rng.randint(1, 3) + content[at:]


def _line(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    """A further line somewhere in a text header, or in the place of another."""
    lines = content[:600].split(b"\n")
    meta = content.startswith(b"Obj")
    separator = rng.choice((" = ", "=", ":", " : ") if meta else (": ", ":=", ":", " : "))
    name = rng.choice(META_FIELDS if meta else NRRD_FIELDS)
    line = f"{name}{separator}{rng.choice(VALUES)}{rng.choice(ENDS)}"
    return _placed(rng, content, lines, line)


def _reference(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    lines = content[:600].split(b"\n")
    meta = content.startswith(b"Obj")
    separator = rng.choice((" = ", "=", ":", " : ", "\t=\t") if meta else (": ", ":=", ":", ":\t"))
    target = rng.choice(names)
    value = rng.choice((target, target, f"LIST{rng.choice(ENDS)}{target}", f"{target}%d 1 3 1", f"  {target} "))
    line = f"{rng.choice(META_NAMES if meta else NRRD_NAMES)}{separator}{value}{rng.choice(ENDS)}"
    return _placed(rng, content, lines, line)


def _placed(rng: random.Random, content: bytes, lines: list[bytes], line: str) -> bytes:
    last = next((n for n, text in enumerate(lines) if text.startswith(b"ElementDataFile") or not text), 1)
    at = rng.randint(1, max(1, last))
    start = sum(len(text) + 1 for text in lines[:at])
    rest = content[start:]
    if rng.random() < 0.5:  # instead of the line that is there
        rest = rest.partition(b"\n")[2]
    return content[:start] + line.encode("latin-1") + rest


def _number(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    found = list(re.finditer(rb"\d+", content[:300]))
    if not found:
        return content
    place = rng.choice(found)
    number = rng.choice((b"0", b"1", b"600", b"65536", b"99999", b"4294967296", b"-5", b"1.5"))
    return content[: place.start()] + number + content[place.end() :]


def _nifti_field(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    changed = bytearray(content)
    at, kind, values = rng.choice(
        [
            (40, "<h", (0, 1, 3, 4, 7, 200)), (42, "<h", (-1, 0, 600, 32767)), (44, "<h", (600, 32767)),
            (46, "<h", (600, 32767)), (48, "<h", (2, 600, 32767)), (70, "<h", (2, 16, 32, 64, 128, 1536, 2304, 9999)),
            (108, "<f", (0.0, -1.0, 1e9, 1e30, float("nan"), 351.0, 100000.0)), (112, "<f", (0.0, float("inf"), 1e30)),
            (80, "<f", (0.0, 1e-3, 99.0, 1e9, float("nan"))), (344, "<4s", (b"ni1\0", b"n+2\0", b"\0\0\0\0")),
            (252, "<h", (0, 1, 5)), (254, "<h", (0, 1, 5)), (348, "<4s", (b"\1\0\0\0",)), (0, "<i", (540, 348, -1)),
        ]
    )  # fmt: skip
    if len(changed) > at + 4:
        struct.pack_into(kind, changed, at, rng.choice(values))
    return bytes(changed)


def _repacked(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    """A gzip file whose inside is changed, or that goes on after its end."""
    try:
        inside = zlib.decompress(content, 47)
    except zlib.error:
        return content
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(_nifti_field(rng, inside, names)) + packer.flush()
    return packed + rng.choice((b"", b"", bytes(50), b"junk", packed_zeros(40, 31)))


def _dicom_field(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    """Another value in the place of one of the numbers that decide on the size, or of a position."""
    tag = rng.choice(
        (b"\x28\0\x10\0US", b"\x28\0\x11\0US", b"\x28\0\x02\0US", b"\x28\0\0\1US", b"\x28\0\3\1US", b"\x02\0\x10\0UI")
    )
    at = content.find(tag)
    if at < 0:
        return content
    size = content[at + 6]
    value = (
        struct.pack("<H", rng.choice((0, 1, 7, 24, 60000)))
        if size == 2
        else rng.choice(
            (
                b"1.2.840.10008.1.2.4.94",
                b"1.2.840.10008.1.2.1.99",
                b"1.2.840.10008.1.2.4.50",
                b"1.2.840.10008.1.2",
                b"9.9",
            )
        )[:size].ljust(size, b"\0")
    )
    return content[: at + 8] + value + content[at + 8 + size :]


def _dicom_element(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    """A further element: a name of a file, frames, a sequence without end."""
    at = (
        next((m.start() for m in re.finditer(rb"(?:\x08|\x10|\x20|\x28)\0..[A-Z]{2}", content[140:], re.DOTALL)), 0)
        + 140
    )
    name = rng.choice(names).encode()
    name += b" " * (len(name) % 2)
    head = struct.pack("<H", len(name))
    element = rng.choice(
        (
            b"\4\0\0\x15CS" + head + name, b"\x28\0\xe0\x7fUR\0\0" + head + b"\0\0" + name,
            b"\x08\0\x90\x11UR\0\0" + head + b"\0\0" + name,
            b"\x28\0\x08\0IS\x06\0999999", b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" * 30,
            b"\x08\0\x40\x11SQ\0\0\x08\0\0\0\xfe\xff\0\xe0\xff\xff\xff\xff",
        )
    )  # fmt: skip
    return content[:at] + element + content[at:]


def _png_size(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    if not content.startswith(b"\x89PNG"):
        return content
    size = rng.choice(((0, 30), (40, 31), (41, 30), (4000, 4000), (30000, 30000), (2**31 - 1, 1)))
    if rng.random() < 0.3:
        return bare_png(size, packed_zeros(rng.choice((1, 30))))
    header = struct.pack(">II", *size) + content[24:29]
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


def _png_chunk(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    if not content.startswith(b"\x89PNG"):
        return content
    kind = rng.choice(
        (b"zTXt", b"iCCP", b"iTXt", b"tEXt", b"acTL", b"fdAT", b"eXIf", b"IDAT", b"PLTE", b"tRNS", b"abcd")
    )
    body = rng.choice(
        (b"a\0\0" + packed_zeros(30), b"a\0\1\0\0\0" + packed_zeros(30), bytes(8), rng.choice(names).encode())
    )
    piece = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content[:33] + piece + content[33:]


def _jpeg_size(rng: random.Random, content: bytes, names: list[str]) -> bytes:
    at = content.find(b"\xff\xc0")
    size = struct.pack(">HH", rng.choice((0, 1, 30, 4000, 65500)), rng.choice((0, 1, 40, 4000, 65500)))
    return content if at < 0 else content[: at + 5] + size + content[at + 9 :]


# ----------------------------------------------------------------------------------------------------- without a server


def read_all(count: int, seed: int, folder: Path, names: list[str]) -> dict[str, object]:
    """Each file through the check and, where it passes, through the readers; what became of them, and the memory."""
    import resource

    from replica_detection.errors import InputError
    from replica_detection.io.volume import read_volume
    from replica_detection_server.uploads.checks import check_upload
    from replica_detection_server.uploads.limits import UploadLimits

    limits, found = UploadLimits.of(1 << 20), Counter()
    inbox = folder / "data" / "uploads" / "upload-1"
    inbox.mkdir(parents=True)
    begun = 0
    failed: list[str] = []
    for number, (name, content) in enumerate(mutants(count, seed, names)):
        path = inbox / f"image.{name.partition('.')[2]}"
        path.write_bytes(content)
        try:
            check_upload(path, limits)
            found["passed"] += 1
            read_volume(path)
            found["read"] += 1
        except InputError as error:
            found[type(error).__name__] += 1
        except Exception as error:
            failed.append(f"{number} {name}: {type(error).__name__} {error}")
        path.unlink()
        # Only what comes on top of the libraries, which the first files load, counts.
        begun = begun if number > count // 10 else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
    return {"files": count, **found, "failed": failed, "more_memory_mib": more >> 10}


# --------------------------------------------------------------------------------------------------- what strace saw


def opened(log: Path) -> list[str]:
    """Every path that was opened, or tried."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return re.findall(r'open(?:at2?)?\((?:[^",]+, )?"((?:[^"\\]|\\.)*)"', text)


def strange(paths: list[str]) -> list[str]:
    """Those that an upload may have named. `sentinel` is in the names of no other files."""
    named = [path for path in paths if "sentinel" in path or path in ELSEWHERE]
    return sorted(set(named))


# ------------------------------------------------------------------------------------------------------ with a server


def through_a_server(count: int, seed: int, folder: Path) -> dict[str, object]:
    import requests

    from Server import collections_on_disk
    from Server.running import running_server

    names = sentinels(folder)
    collections = collections_on_disk.make(folder / "collections", SHAPE)
    options = {k: v for k, v in collections.options.items() if k != "api_key_file"} | {"measures": "mae"}
    data = folder / "data"
    log = folder / "strace.log"
    for place in ("uploads", "tmp", "sessions", ""):
        (data / place).mkdir(parents=True, exist_ok=True)
        (data / place / "sentinel.raw").write_bytes(voxels().tobytes())
    with running_server(
        collections.studies,
        work=folder,
        training=collections.training,
        data=data,
        conf=options,
        hardened=True,
        under=(*STRACE, str(log)),
    ) as server:
        good = (collections.studies / "syn_000.nii.gz").read_bytes()
        while requests.post(f"{server.url}/replica/compare", files={"file": ("a.nii.gz", good)}).status_code == 503:
            time.sleep(1)
        memory = _Memory(server.pid)
        before = memory.now()
        statuses: Counter[str] = Counter()
        failed: list[str] = []
        sender = _Sender(server.url, statuses, failed)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(sender, enumerate(mutants(count, seed, names))))
        memory.stop()
        still = requests.get(f"{server.url}/replica/status", timeout=60).status_code
    paths = opened(log)
    return {
        "files": count,
        "answers": dict(statuses),
        "failed": failed,
        "opened": strange(paths),
        "opens_seen": len(paths),
        "memory_before_mib": before >> 20,
        "memory_most_mib": memory.most >> 20,
        "status_afterwards": still,
    }


class _Sender:
    def __init__(self, url: str, statuses: Counter[str], failed: list[str]):
        self.url, self.statuses, self.failed = url, statuses, failed

    def __call__(self, numbered: tuple[int, tuple[str, bytes]]) -> None:
        number, (name, content) = numbered
        sent = ("image." + name.partition(".")[2], content)
        self._ask(number, "compare", "POST", "/replica/compare", {"file": sent})
        self._ask(number, "infer", "POST", "/infer/vessels?output=json", {"file": sent})
        made = self._ask(number, "session", "PUT", "/session/", {"files": sent})
        if made.status_code == 200:
            id = made.json()["session_id"]
            self._ask(number, "infer of session", "POST", f"/infer/vessels?output=json&session_id={id}", None)
            self._ask(number, "end of session", "DELETE", f"/session/{id}", None)

    def _ask(self, number: int, what: str, method: str, path: str, files: dict | None):
        import requests

        while True:
            reply = requests.request(method, self.url + path, files=files, timeout=300)
            if reply.status_code != 503:
                break
            time.sleep(0.3)
        self.statuses[f"{what} {reply.status_code}"] += 1
        if reply.status_code >= 500 or "sentinel" in reply.text:
            self.failed.append(f"{number} {what}: {reply.status_code} {reply.text[:200]}")
        return reply


class _Memory(threading.Thread):
    """The most resident memory of a process and all below it, looked at ten times a second."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.most, self._going = pid, 0, True
        self.start()

    def now(self) -> int:
        import psutil

        total = 0
        try:
            top = psutil.Process(self.pid)
            for process in (top, *top.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            pass
        return total

    def run(self) -> None:
        while self._going:
            self.most = max(self.most, self.now())
            time.sleep(0.1)

    def stop(self) -> None:
        self._going = False
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an existing empty folder; else one that is removed afterwards")
    parser.add_argument("--without-server", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.without_server:
            # Sentinels were made by whoever watches what this process opens.
            names = (
                json.loads((folder / "names.json").read_text(encoding="utf-8")) if given.folder else sentinels(folder)
            )
            result = read_all(given.files, given.seed, folder, names)
        else:
            result = through_a_server(given.files, given.seed, folder)
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["failed"] or result.get("opened") else 0)


def watched(count: int, seed: int, folder: Path) -> tuple[dict, list[str], int]:
    """`read_all` in a process of its own under strace: its result, what it must not have opened, and all it opened."""
    names = sentinels(folder)
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    log = folder / "strace.log"
    command = [*STRACE, str(log), sys.executable, __file__, "--without-server", "--files", str(count)]
    command += ["--seed", str(seed), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=500, check=False)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return json.loads(done.stdout), strange(opened(log)), len(opened(log))


if __name__ == "__main__":
    main()
