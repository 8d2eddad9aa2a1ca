"""Packaging: `pip install .` gives the core and the `replica-detection` command, `.[server]` the MONAI Label server."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SERVER = "replica_detection_server"
VERSION = {}
exec((HERE / "ReplicaDetection/replica_detection/version.py").read_text(encoding="utf-8"), VERSION)

setup(
    name="replica-detection",
    version=VERSION["__version__"],
    description="Finds synthetic medical images that are replicas of a real patient's scan.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The folder of the MONAI Label app is a package too, so that `serve` works from an installed wheel.
    package_dir={"": "ReplicaDetection", SERVER: "MonaiLabelApp"},
    packages=[
        *find_packages("ReplicaDetection", include=["replica_detection", "replica_detection.*"]),
        SERVER,
        *(f"{SERVER}.{name}" for name in find_packages("MonaiLabelApp")),
    ],
    package_data={
        "replica_detection": ["py.typed", "report/*.html", "report/*.css", "report/*.js"],
        SERVER: ["py.typed"],
    },
    install_requires=[
        # Searches slices by similarity: wheels for Linux, macOS and Windows, MIT.
        "faiss-cpu>=1.9",
        "filelock>=3.12",
        "jinja2>=3.1",
        # Worker processes that need no guard of __main__, and the cores that a process may use: BSD-3, pure Python.
        "loky>=3.5",
        "matplotlib>=3.8",
        "monai>=1.5,<2",
        "nibabel>=5.2",
        "numba>=0.60",
        "numpy>=1.26,<3",
        "pillow>=10",
        "pydicom>=2.4.4",
        # Headers of NRRD files: MIT, pure Python.
        "pynrrd>=1.1",
        "rich>=13",
        "safetensors>=0.4",
        "scikit-image>=0.24",
        "scipy>=1.12",
        "SimpleITK>=2.4",
        "threadpoolctl>=3.5",
        "torch>=2.4",
        "typer>=0.12",
        "zarr>=3.0,<4",
    ],
    extras_require={
        # MONAI Label 0.8.5 imports pydicom-seg, which does not work with pydicom 3; the bounds below keep pydicom 2.
        "server": [
            "monailabel==0.8.5; python_version < '3.13'",
            "dicomweb-client[gcp]>=0.59.1,<0.60",
            # From 0.121 on, a dependency can end before the reply is sent.
            "fastapi>=0.121,<1",
            # Counters for /metrics: Apache-2.0, pure Python.
            "prometheus-client>=0.20",
            "pydantic>=2.7,<3",
            "pydicom>=2.4.4,<3",
            "pyjwt[crypto]>=2.8,<3",
            "pynetdicom>=2.0.2,<3",
            "python-multipart>=0.0.18",
            "pytorch-ignite>=0.5,<0.6",
            "setuptools>=61",
            "uvicorn>=0.29,<1",
            "watchdog>=4,<8",
        ],
        "slicer": [],
        # Work on more than one machine: BSD-3, pure Python.
        "distributed": ["distributed>=2024.8"],
        "dev": [
            "distributed>=2024.8",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8",
            # Runs tests in parallel: MIT, maintained.
            "pytest-xdist>=3.6",
            "ruff==0.17.6",
            "surface-distance-based-measures==0.1",
            "vtk>=9.3",
        ],
        # The documentation site, `make docs`: BSD-2, MIT, ISC. MkDocs 2 has no plugins.
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.7,<10",
            "mkdocstrings>=1,<2",
            "mkdocstrings-python>=2,<3",
        ],
    },
    entry_points={"console_scripts": ["replica-detection=replica_detection.cli:main"]},
)
