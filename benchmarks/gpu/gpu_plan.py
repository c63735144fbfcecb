# SPDX-License-Identifier: Apache-2.0
"""The parts of the check: what runs, for how long, and on which sources it depends."""

from dataclasses import dataclass

LIMIT = 480  # seconds that a part may take in one go
KERNEL = (
    "custom_ops/exit_gate.h",
    "custom_ops/exit_gate_cuda.cu",
    "benchmarks/gpu/gate_c.cu",
)
GRID = (*KERNEL[:2], "custom_ops/check.h", "custom_ops/cuda_check.cu")
PACKAGE = ("keras_branchy/**/*.py", "custom_ops/exit_gate*", "custom_ops/lanes.h")
DTYPES = ("float32", "float16", "bfloat16")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
NETWORKS = ("b_lenet", "b_alexnet", "b_resnet_110", "resnet50")
IN_TORCH = ("b_lenet", "b_alexnet")
WITH_DATA = NETWORKS[:3]


@dataclass(frozen=True)
class Part:
    """One program with its arguments.

    Attributes:
        name: Its name on the command line, and of its files.
        about: What it finds out.
        command: The program, in this folder, and its arguments.
        sources: Patterns of the files on which its results depend.
        tensorflow: Whether it runs in the environment that TENSORFLOW_ENV names.
        carries: Whether it uses weights or images of the folder of carry.py.
        seconds: What it may take in one go; one that leaves rows goes on afterwards.
    """

    name: str
    about: str
    command: tuple[str, ...]
    sources: tuple[str, ...] = ()
    tensorflow: bool = False
    carries: bool = False
    seconds: int = LIMIT

    @property
    def depends(self):
        return (f"benchmarks/gpu/{self.command[0]}", *self.sources)


def parts():
    """All of them, in the order in which they run."""
    return [
        Part("machine", "driver, compiler, tools and libraries", ("gpu_machine.py",)),
        Part(
            "grid",
            "hostile logits against float64, then bandwidth",
            ("kernel_grid.py", "--tool", "none"),
            GRID,
        ),
        *(
            Part(
                tool,
                f"compute-sanitizer's {tool} on the short grid",
                ("kernel_grid.py", "--tool", tool),
                GRID,
            )
            for tool in TOOLS
        ),
        *(
            Part(
                f"kernel_{dtype}",
                f"the kernel beside PyTorch, Triton, CuPy and JAX, {dtype}",
                ("kernel_time.py", "--dtype", dtype),
                (*KERNEL, "benchmarks/gpu/kernel_*.py"),
            )
            for dtype in DTYPES
        ),
        Part(
            "counters",
            "what limits the kernel, by Nsight Compute",
            ("kernel_counters.py",),
            (*KERNEL, "benchmarks/gpu/kernel_native.py"),
        ),
        Part(
            "tensorflow",
            "TensorFlow computes rightly on the GPU, and the op is placed there",
            ("tensorflow_check.py",),
            PACKAGE,
            tensorflow=True,
        ),
        *(
            Part(
                f"staged_{network}",
                f"{network} in one tf.function against the plain backbone",
                ("staged_tensorflow.py", "--network", network),
                (*PACKAGE, "benchmarks/gpu/staged_*.py"),
                tensorflow=True,
                carries=True,
            )
            for network in NETWORKS
        ),
        *(
            Part(
                f"parity_{network}",
                f"answers of {network} on the GPU against the CPU, all test images",
                ("parity_tensorflow.py", "--network", network),
                (*PACKAGE, "benchmarks/gpu/staged_networks.py"),
                tensorflow=True,
                carries=True,
            )
            for network in WITH_DATA
        ),
        *(
            Part(
                f"torch_{network}",
                f"the stages of {network} in PyTorch around the kernel",
                ("staged_torch.py", "--network", network),
                (*KERNEL, "benchmarks/gpu/staged_*.py", "benchmarks/gpu/kernel_native.py"),
                carries=True,
            )
            for network in IN_TORCH
        ),
    ]
