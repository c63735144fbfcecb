# SPDX-License-Identifier: Apache-2.0
"""Build and metadata of keras-branchy; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# TensorFlow is held to one minor version because a compiled op is bound to it.
REQUIRES = ["tensorflow>=2.21,<2.22", "keras>=3.15.1", "numpy>=2.0"]
PLOTS = ["matplotlib>=3.9"]
# tensorflow-datasets imports importlib_resources without declaring it.
EXAMPLES = [
    *PLOTS,
    "tensorflow-datasets>=4.9.10",
    "importlib_resources",
    "scikit-learn>=1.5",
]
TEST = [*EXAMPLES, "pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.100"]
# Formatters are held to one release, so that a new one cannot fail an old commit.
DEV = [*TEST, "ruff~=0.17.6", "mypy~=2.4", "clang-format~=23.1"]


def version() -> str:
    """Read `__version__` from the package's source, without importing it."""
    source = (ROOT / "keras_branchy" / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)[0]


def long_description() -> str:
    """The README, where it is there."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# ---- The native op (custom_ops/) ----------------------------------------------------
def native_build() -> dict[str, Any]:
    """Keywords for `setup` that build the compiled op; empty builds pure Python."""
    return {}


# ---- Metadata -----------------------------------------------------------------------
setup(
    name="keras-branchy",
    version=version(),
    description="Early exits for Keras models: train, calibrate, stop when sure.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="keras tensorflow early-exit branchynet adaptive-inference litert",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["keras_branchy", "keras_branchy.*"]),
    package_data={"keras_branchy": ["py.typed"]},
    install_requires=REQUIRES,
    extras_require={
        # The exported stages' runner imports nothing else; on a device that has no
        # room for TensorFlow, install these two and the package with --no-deps.
        "runtime": ["ai-edge-litert>=2.3", "numpy>=2.0"],
        "plots": PLOTS,
        "examples": EXAMPLES,
        "test": TEST,
        "dev": DEV,
    },
    zip_safe=False,
    **native_build(),
)
