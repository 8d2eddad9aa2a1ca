"""`import replica_detection`: its names, what it loads, its examples, and inputs from memory against files."""

import ast
import csv
import dataclasses
import doctest
import gc
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import replica_detection as rd
from Core.made_up import volume, write

CORE = Path(rd.__file__).parent
HEAVY = ("torch", "monai", "numba", "zarr", "faiss", "nibabel", "skimage", "matplotlib", "typer", "rich", "scipy",
         "pandas", "pydicom", "SimpleITK", "PIL", "jinja2")  # fmt: skip
FINDER = doctest.DocTestFinder(exclude_empty=True)
FUNCTIONS = [name for name in rd.__all__ if inspect.isfunction(getattr(rd, name))]


def blocks(docstring: str) -> list[str]:
    """The ```python blocks of a docstring."""
    return re.findall(r"```python\n(.*?)```", inspect.cleandoc(docstring), re.DOTALL)


def dedented(block: str) -> str:
    margin = len(block) - len(block.lstrip(" "))
    return "\n".join(line[margin:] for line in block.splitlines())


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_has_its_function():
    commands = {
        "build_index", "detect", "find_duplicates", "segment", "train_encoder", "train_segmentation", "calibrate",
        "assess_set", "filter_replicas", "selftest", "write_report", "run_demo", "mask_quality",
    }  # fmt: skip
    assert commands <= set(FUNCTIONS)
    assert issubclass(rd.InputError, rd.ReplicaDetectionError)


@pytest.mark.parametrize("name", [n for n in rd.__all__ if n not in ("__version__", "Progress")])
def test_every_name_is_documented(name):
    documented = inspect.getdoc(getattr(rd, name))
    assert documented and not documented.startswith(f"{name}("), "a dataclass without a docstring of its own"
    assert not re.match(r"(What|How|Whether|Who|Where)\b", documented)
    if name in FUNCTIONS:
        assert blocks(documented), "no example"


def test_names_for_type_checkers_are_those_that_load():
    tree = ast.parse((CORE / "__init__.py").read_text("utf-8"))
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {a.name: str(n.module) for n in typed.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert imports == {name: f"replica_detection.{module}" for name, module in rd._MODULE_OF.items()}
    assert sorted([*imports, "__version__"]) == sorted(rd.__all__) == dir(rd)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = rd.nothing_like_it


def test_no_name_is_that_of_a_room():
    rooms = {p.name for p in CORE.iterdir() if (p / "__init__.py").is_file()}
    assert not rooms & set(rd.__all__)


def test_no_room_imports_from_the_package_itself():
    for path in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "replica_detection":
                assert {a.name for a in node.names} <= {p.name for p in CORE.iterdir()}, path


def test_the_import_is_quick_and_needs_no_package():
    code = (
        "import sys, time\n"
        f"for name in {(*HEAVY, 'numpy')!r}: sys.modules[name] = None\n"
        "start = time.process_time()\n"
        "import replica_detection\n"
        "print(time.process_time() - start)\n"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 0.2


def test_results_and_errors_load_with_numpy_alone():
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "import replica_detection as rd\n"
        "print(rd.DetectionResult.__name__, rd.InputError('x', 'is y', 'Do z'))\n"
        "print(rd.Cohort.__name__, rd.Rating.__name__)\n"
    )
    assert run_python(code).split() == ["DetectionResult", "x:", "is", "y.", "Do", "z.", "Cohort", "Rating"]


# The smallest demo makes forty phantoms and takes minutes.
@pytest.mark.parametrize("name", ["replica_detection", *(name for name in FUNCTIONS if name != "run_demo")])
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documented = inspect.getdoc(rd if name == "replica_detection" else getattr(rd, name))
    for block in blocks(documented):
        exec(compile(dedented(block), f"<example of {name}>", "exec"), {"__name__": "__example__"})


@pytest.mark.slow
def test_the_example_of_the_demo_runs(tmp_path, monkeypatch):
    test_examples_run("run_demo", tmp_path, monkeypatch)


def test_examples_of_classes_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = [getattr(rd, name) for name in rd.__all__ if inspect.isclass(getattr(rd, name))]
    tried = [doctest.DocTestRunner().run(test, out=print) for kind in classes for test in FINDER.find(kind)]
    assert not any(result.failed for result in tried) and any(result.attempted for result in tried)


@pytest.fixture(scope="module")
def arrays():
    training = np.stack([volume(n) for n in range(14)])
    unseen = np.stack([volume(500 + n) for n in range(10)])
    copies = training[:2] + np.random.default_rng(0).normal(0, 5, training[:2].shape).astype(np.float32)
    return training, unseen, np.concatenate([copies, np.stack([volume(900 + n) for n in range(3)])])


def cohorts(*parts):
    return [rd.Cohort.from_arrays(part, spacing=(1, 1, 1.2)) for part in parts]


def test_arrays_and_folders_give_the_same_table(arrays, tmp_path):
    training, unseen, images = arrays
    affine = np.diag([1.0, 1.0, 1.2, 1.0])

    def in_memory(part, prefix):
        ids = [f"{prefix}_{n}" for n in range(len(part))]
        return rd.Cohort.from_arrays(part, affines=affine, ids=ids)

    def on_disk(part, prefix):
        for n, array in enumerate(part):
            write(tmp_path / prefix / f"{prefix}_{n}.nii.gz", array, affine)
        return tmp_path / prefix

    tables = []
    for made in (in_memory, on_disk):
        index = rd.build_index(made(training, "train"), tmp_path / f"{made.__name__}.rdindex", measures=["mae", "ssim"])
        result = rd.detect(made(images, "synthetic"), index, validation=made(unseen, "unseen"))
        result.write(tmp_path / made.__name__)
        tables.append(result)
    for name in ("summary.csv", "matches.csv"):
        rows = [
            list(csv.DictReader((tmp_path / kind / name).open(encoding="utf-8"))) for kind in ("in_memory", "on_disk")
        ]
        assert sorted(rows[0], key=str) == sorted(rows[1], key=str)
    assert [c.verdict for c in tables[0].summary[:2]] == ["replica", "replica"]
    assert tables[0].summary[0].nearest_training_id == "train_0"


def test_a_result_of_arrays_draws_its_report_and_reads_back(arrays, tmp_path):
    training, unseen, images = cohorts(*arrays)
    result = rd.detect(images, training, validation=unseen, measures=["mae"])
    page = result.write_report(tmp_path / "report").read_text("utf-8")
    assert "data:image" in page
    result.write(tmp_path / "result")
    again = rd.DetectionResult.read(tmp_path / "result")
    assert (again.summary, again.matches, again.inputs) == (result.summary, result.matches, None)
    assert again.run == result.run
    index = Path(result.run.index)
    assert index.is_dir()
    del result
    deadline = time.time() + 10
    while index.exists() and time.time() < deadline:
        gc.collect()
    assert not index.exists(), "the temporary index outlives its result"


def test_settings_are_given_once(arrays, tmp_path):
    training, _, images = cohorts(*arrays)
    with pytest.raises(rd.ConfigurationError, match="either options, or measures"):
        rd.detect(images, training, options=rd.DetectionOptions(), k=3)
    with pytest.raises(rd.ConfigurationError, match="k is 0: it must be at least 1"):
        rd.detect(images, training, k=0)
    with pytest.raises(rd.ConfigurationError, match="must be a list of names"):
        rd.detect(images, training, measures="mae")
    index = rd.build_index(training, tmp_path / "x.rdindex", measures=["mae"])
    with pytest.raises(rd.ConfigurationError, match="an index has its own masks"):
        rd.detect(images, index, training_masks=arrays[0] > 500)
    with pytest.raises(rd.IndexFormatError):
        rd.detect(images, tmp_path / "nowhere.rdindex")


def test_a_data_frame_is_made_where_pandas_is(arrays, monkeypatch):
    training, unseen, images = cohorts(*arrays)
    result = rd.detect(images, training, validation=unseen, measures=["mae"])
    with pytest.raises(rd.ConfigurationError, match="unknown table"):
        result.to_dataframe("rows")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(rd.ConfigurationError, match="pip install pandas"):
        result.to_dataframe()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    frame = result.to_dataframe()
    assert list(frame.columns) == [f.name for f in dataclasses.fields(rd.CaseSummary)]
    assert list(frame["synthetic_id"]) == [c.synthetic_id for c in result.summary]
    assert len(result.to_dataframe("matches")) == len(result.matches)
