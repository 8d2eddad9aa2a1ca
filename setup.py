"""Packaging of the detection core: `pip install .` gives the `replica-detection` command."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
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
    package_dir={"": "ReplicaDetection"},
    packages=find_packages("ReplicaDetection", include=["replica_detection", "replica_detection.*"]),
    package_data={"replica_detection": ["py.typed", "report/*.html", "report/*.css", "report/*.js"]},
    install_requires=[
        # Searches slices by similarity: wheels for Linux, macOS and Windows, MIT.
        "faiss-cpu>=1.9",
        "filelock>=3.12",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "monai>=1.5,<2",
        "nibabel>=5.2",
        "numba>=0.60",
        "numpy>=1.26,<3",
        "pillow>=10",
        "pydicom>=2.4.4",
        "rich>=13",
        "safetensors>=0.4",
        "scikit-image>=0.24",
        "scipy>=1.12",
        "SimpleITK>=2.4",
        "torch>=2.4",
        "typer>=0.12",
        "zarr>=3.0,<4",
    ],
    extras_require={
        "server": [],
        "slicer": [],
        "dev": [
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8",
            "ruff==0.17.6",
            "surface-distance-based-measures==0.1",
            "vtk>=9.3",
        ],
    },
    entry_points={"console_scripts": ["replica-detection=replica_detection.cli:main"]},
)
