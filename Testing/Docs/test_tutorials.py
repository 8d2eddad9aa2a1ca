"""The tutorials run, in quick sizes, and find what their pages say; their pictures are small."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(PROJECT.glob("docs/tutorials/*.py"))
PICTURES = PROJECT / "docs" / "images" / "tutorials"
MAX_BYTES = 150_000


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    """The build hook that makes pages of the scripts and runs them."""
    spec = importlib.util.spec_from_file_location("tutorials", PROJECT / "docs" / "hooks" / "tutorials.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "tutorials", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICA_DETECTION_QUICK", "1")


def printed(tutorials: ModuleType, name: str, folder: Path) -> str:
    """What a tutorial prints; every picture that its page shows is written."""
    script = PROJECT / "docs" / "tutorials" / f"{name}.py"
    out = "".join(tutorials.run(script, folder))
    assert {p.name for p in folder.glob("*.png")} == set(pictures_on(script))
    return out


def pictures_on(script: Path) -> list[str]:
    return re.findall(r"images/tutorials/(\w+\.png)", script.read_text(encoding="utf-8"))


def test_five_minutes(tutorials: ModuleType, tmp_path: Path) -> None:
    lines = printed(tutorials, "five_minutes", tmp_path).splitlines()
    copies = {"noisy copy of 2": "train_02", "mirrored copy of 5": "train_05", "hematoma of 8": "train_08"}
    # By falling score: the copies come first.
    for line in lines[:3]:
        assert any(line.startswith(copy) and f"  {source}  " in line for copy, source in copies.items()), line
        assert " novel " not in line and " undefined " not in line
    assert [line[:4] for line in lines[3:5]] == ["new_", "new_"]
    assert (tmp_path / "result" / "summary.csv").is_file() and (tmp_path / "result" / "report" / "index.html").is_file()


def test_memorizing_generator(
    tutorials: ModuleType, tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (real_data / "generated").is_dir():
        pytest.skip("no images of a generator")
    monkeypatch.setenv("REPLICA_DETECTION_TEST_DATA", str(real_data))
    out = printed(tutorials, "memorizing_generator", tmp_path)
    assert int(re.search(r"'replica': (\d+)", out)[1]) >= 50
    assert int(re.search(r"ssim +(\d+) of 64", out)[1]) >= 60


def test_clean_split(tutorials: ModuleType, tmp_path: Path) -> None:
    out = printed(tutorials, "clean_split", tmp_path)
    assert re.search(r"identical +export_a +scan_03", out)
    assert re.search(r"identical +export_b +scan_05", out)
    assert out.count("identical") == 2  # heads that are alike are not the same
    assert out.splitlines()[-1] == "[]"
    rows = [line.split(",") for line in (tmp_path / "split.csv").read_text(encoding="utf-8").splitlines()[1:]]
    sides = {name: side for name, _, side in rows}
    assert set(sides.values()) == {"train", "test"}
    for copy, source in (("export_a", "scan_03"), ("export_b", "scan_05"), ("follow_up", "scan_08")):
        assert sides[copy] == sides[source]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_pages_have_outputs_and_small_pictures(tutorials: ModuleType, script: Path) -> None:
    cells = [cell for cell in tutorials.cells_of(script) if cell.code]
    outputs = json.loads(script.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(outputs) == len(cells), "run `make tutorials`"
    assert all(bool(output) == ("print(" in cell.text) for cell, output in zip(cells, outputs, strict=True))
    assert pictures_on(script)
    for name in pictures_on(script):
        assert (PICTURES / name).stat().st_size < MAX_BYTES


def test_a_script_becomes_text_and_code(tutorials: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "made.py"
    code = "x = 1\n\n\n# kept with the code\ny = 2\n\n# More *text*\n# here.\n\nprint(x + y)\n"
    script.write_text(f'"""# Title\n\nText."""\n\n{code}', encoding="utf-8")
    cells = tutorials.cells_of(script)
    assert [(c.code, c.text, c.line) for c in cells] == [
        (False, "# Title\n\nText.", 1),
        (True, "x = 1\n\n\n# kept with the code\ny = 2", 5),
        (False, "More *text*\nhere.", 11),
        (True, "print(x + y)", 14),
    ]
    assert tutorials.run(script, tmp_path) == ["", "3\n"]
