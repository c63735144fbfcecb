# SPDX-License-Identifier: Apache-2.0
"""Build and metadata of keras-branchy; the tools' settings are in pyproject.toml."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# TensorFlow is held to one minor version because a compiled op is bound to it.
REQUIRES = ["tensorflow>=2.21,<2.22", "keras>=3.15.1", "numpy>=2.0"]
LITERT = ["ai-edge-litert>=2.3", "numpy>=2.0"]
ONNX = ["tf2onnx>=1.17", "onnx>=1.23", "onnxruntime>=1.31"]
PLOTS = ["matplotlib>=3.9"]
CLI = ["typer>=0.29", "rich>=15.0"]
# tensorflow-datasets imports importlib_resources without declaring it.
EXAMPLES = [
    *PLOTS,
    "tensorflow-datasets>=4.9.10",
    "importlib_resources",
    "scikit-learn>=1.5",
]
TEST = [
    *EXAMPLES,
    *CLI,
    *LITERT,
    *ONNX,
    "jsonschema>=4.23",
    "jax>=0.10",  # to train on another backend of Keras
    "keras-tuner>=1.4.8",
    "pydot>=4.0",  # which Keras draws models with
    "tensorboard>=2.20",  # which Keras' callback of that name writes with
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
]
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
def native_builder() -> Any:
    """The module `custom_ops/build.py`."""
    path = ROOT / "custom_ops" / "build.py"
    spec = importlib.util.spec_from_file_location("keras_branchy_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithNative(build_py):
    """Adds the native parts' sources, and themselves where they can be compiled."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # A checkout builds it at first use, or with `make native`.
        target = Path(self.build_lib, "keras_branchy", "custom_ops")
        target.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.py", "*.h", "*.cc", "*.cu", "*.md"):
            for source in (ROOT / "custom_ops").glob(pattern):
                shutil.copy(source, target)
        builder = native_builder()
        for name, build, instead in (
            ("exit gate", builder.build, "plain TensorFlow"),
            ("step", builder.build_step, "NumPy"),
        ):
            try:
                print("built", build(target))
            except builder.BuildError as error:
                print(
                    f"The native {name} was not built, and {instead} will run in its "
                    f"place. {error}",
                    file=sys.stderr,
                )
        for left in (*target.glob("*.error"), *target.glob(".lock")):
            left.unlink()


class MaybeNative(Distribution):
    """A wheel with compiled parts in it is for one platform."""

    def has_ext_modules(self) -> bool:
        builder = native_builder()
        try:
            builder.find_compiler()
        except builder.BuildError:
            return False
        return True


def native_build() -> dict[str, Any]:
    """Keywords for `setup` that build the compiled op."""
    return {"cmdclass": {"build_py": BuildWithNative}, "distclass": MaybeNative}


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
    package_data={"keras_branchy": ["py.typed", "runner/manifest.schema.json"]},
    install_requires=REQUIRES,
    extras_require={
        # The exported stages' runner imports nothing else; on a device that has no
        # room for TensorFlow, install these two and the package with --no-deps.
        "runtime": LITERT,
        "onnx": ONNX,
        "plots": PLOTS,
        "cli": CLI,
        "examples": EXAMPLES,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["keras-branchy = keras_branchy.cli.entry:main"]},
    zip_safe=False,
    **native_build(),
)
