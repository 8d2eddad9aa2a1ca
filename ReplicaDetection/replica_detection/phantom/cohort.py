"""Demo cohorts on disk: training, validation and synthetic cases with planted replicas, and the truth beside them."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.phantom.base import Phantom, generator
from replica_detection.phantom.replicas import MAKERS, REPLICA_KINDS, make_replica
from replica_detection.util.cores import kernel_threads
from replica_detection.util.csv_tables import write_rows
from replica_detection.util.files import atomic_write

PREFIX = {"head_ct": "ct", "tof_mra": "mra"}
_FOLLOW_UPS = 2
# Number of patients that belong to one cohort seed; those of another seed are different ones.
_PATIENTS_PER_SEED = 1_000_000
_THREADS = 4


@dataclass(frozen=True)
class _Scan:
    """A real patient's scan, by the arguments that generate it."""

    case: str
    patient: str
    anatomy_seed: int
    visit: int = 0

    def make(self, use_case: str) -> Phantom:
        return MAKERS[use_case](self.anatomy_seed, visit=self.visit)


@dataclass(frozen=True)
class _Synthetic:
    """A synthetic case: a new patient (`kind` "novel", no `other`), or a replica of `source`."""

    kind: str
    source: _Scan
    other: _Scan | None
    seed: int

    def make(self, use_case: str) -> Phantom:
        if self.other is None:
            return self.source.make(use_case)
        phantom = self.source.make(use_case)
        other = self.other.make(use_case) if self.kind == "blend" else phantom
        return make_replica(self.kind, phantom, generator(self.seed, 31), other)


def make_demo_cohort(
    use_case: str,
    output: Path,
    *,
    training: int = 40,
    validation: int = 20,
    novel: int = 16,
    per_kind: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a cohort whose truth is known; the same arguments give the same files, byte for byte.

    Folders `training`, `validation`, `synthetic` hold int16 NIfTI images and `*_masks` uint8 masks of the same names.
    `patients.csv` (`id,patient`) names the patient of each training and validation case: two training patients (where
    there are at least 6 cases) have a follow-up scan. `truth.csv` (`synthetic_id,kind,training_id,transform`) says for
    each synthetic case whether it is a `replica` (of which training case, by which transform) or `novel`. Sources of
    replicas are patients with one scan, so that their training case is unambiguous.

    Args:
        use_case: "head_ct" or "tof_mra".
        output: a folder; it is created where it is missing.
        training: scans, follow-ups included; at least 2.
        validation: scans of other patients.
        novel: synthetic cases of new patients.
        per_kind: replicas of each kind in `REPLICA_KINDS`.
        seed: 0 or larger; cohorts of different seeds share no patient.
        progress: called with (volumes written, volumes in all).

    Returns:
        `output`.

    Raises:
        ConfigurationError: an unknown use case or a size out of range.
        InputError: a folder of the cohort holds images of another run.
    """
    _check(use_case, training, validation, novel, per_kind, seed)
    output, rng = Path(output), generator(seed, 30)
    known = _known_scans(use_case, training, validation, seed)
    synthetic = _synthetic_cases(use_case, known[:training], novel, per_kind, seed, rng)
    jobs: list[tuple[str, str, _Scan | _Synthetic]] = [
        ("training" if i < training else "validation", scan.case, scan) for i, scan in enumerate(known)
    ]
    jobs += [("synthetic", f"synthetic_{i:03d}", case) for i, case in enumerate(synthetic)]
    _make_folders(output, jobs)
    _write_all(output, use_case, jobs, progress)
    _write_table(output / "patients.csv", ("id", "patient"), [(s.case, s.patient) for s in known])
    rows = [
        (name, "novel", "", "novel") if c.other is None else (name, "replica", c.source.case, c.kind)
        for _, name, c in jobs
        if isinstance(c, _Synthetic)
    ]
    _write_table(output / "truth.csv", ("synthetic_id", "kind", "training_id", "transform"), rows)
    return output


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a gzipped NIfTI file atomically, the same bytes for the same content; qform and sform code 1 (scanner)."""
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_write(path, "wb") as f:
        f.write(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _check(use_case: str, training: int, validation: int, novel: int, per_kind: int, seed: int) -> None:
    if use_case not in MAKERS:
        raise ConfigurationError(f"unknown use case '{use_case}'; known: {', '.join(MAKERS)}")
    if training < 2 or min(validation, novel, per_kind, seed) < 0:
        raise ConfigurationError(
            "a demo cohort needs at least 2 training cases and no negative size or seed, found "
            f"training={training}, validation={validation}, novel={novel}, per_kind={per_kind}, seed={seed}"
        )


def _known_scans(use_case: str, training: int, validation: int, seed: int) -> list[_Scan]:
    """Training scans, then validation scans; the last training scans are follow-ups of earlier patients."""
    prefix, first = PREFIX[use_case], seed * _PATIENTS_PER_SEED
    follow_ups = _FOLLOW_UPS if training >= 3 * _FOLLOW_UPS else 0
    scans = []
    for i in range(training + validation):
        late = i - (training - follow_ups) if training - follow_ups <= i < training else -1
        person = 2 * late + 1 if late >= 0 else i
        scans.append(_Scan(f"{prefix}_{i + 1:03d}", f"patient_{person + 1:03d}", first + person, visit=int(late >= 0)))
    return scans


def _synthetic_cases(
    use_case: str, training: list[_Scan], novel: int, per_kind: int, seed: int, rng: np.random.Generator
) -> list[_Synthetic]:
    """All synthetic cases, shuffled; no training case is used twice before each was used once."""
    patients = [s.patient for s in training]
    single = [s for s in training if patients.count(s.patient) == 1]
    order: list[int] = []
    cases = []
    for kind in REPLICA_KINDS:
        for _ in range(per_kind):
            order = order or list(rng.permutation(len(single)))
            source = single[order.pop()]
            others = [s for s in training if s.patient != source.patient]
            other = others[int(rng.integers(len(others)))]
            cases.append(_Synthetic(kind, source, other, int(rng.integers(2**40))))
    # Patients that are in no other folder.
    first = seed * _PATIENTS_PER_SEED + _PATIENTS_PER_SEED // 2
    cases += [_Synthetic("novel", _Scan("", "", first + i), None, 0) for i in range(novel)]
    return [cases[i] for i in rng.permutation(len(cases))]


def _make_folders(output: Path, jobs: list[tuple[str, str, _Scan | _Synthetic]]) -> None:
    """Create the folders. Raises InputError where one holds other images."""
    for part in ("training", "validation", "synthetic"):
        names = {f"{name}.nii.gz" for folder, name, _ in jobs if folder == part}
        for folder in (output / part, output / f"{part}_masks"):
            folder.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in folder.glob("*.nii.gz") if p.name not in names)
            if foreign:
                raise InputError(
                    folder,
                    f"holds {len(foreign)} images of another run, such as {foreign[0]}",
                    "Use an empty folder",
                )


def _write_all(
    output: Path,
    use_case: str,
    jobs: list[tuple[str, str, _Scan | _Synthetic]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Generate and write all volumes. Threads suffice: NumPy, SciPy and zlib release the interpreter's lock."""

    def work(folder: str, name: str, case: _Scan | _Synthetic) -> None:
        phantom = case.make(use_case)
        write_nifti(output / f"{folder}_masks" / f"{name}.nii.gz", phantom.mask, phantom.affine)
        write_nifti(output / folder / f"{name}.nii.gz", phantom.image.astype(np.int16), phantom.affine)

    with ThreadPoolExecutor(max(1, min(_THREADS, kernel_threads()))) as pool:
        running: list[Future[None]] = [pool.submit(work, *job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                if progress:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_table(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with atomic_write(path) as f:
        write_rows(f, [header, *rows])
