# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel as a shared library without TensorFlow, called on torch's tensors."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

from gpu_rows import HERE, ROOT, CouldNotRunError

SOURCES = [ROOT / "custom_ops" / "exit_gate_cuda.cu", HERE / "gate_c.cu"]
STORAGES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3}
CRITERIA = {"entropy": 0, "max_probability": 1, "margin": 2, "distance": 3}


def build(rehearse=False):
    """The library; nvcc for the GPU that is there, or g++ and the tests' emulation.

    Raises:
        CouldNotRunError: Without the compiler, or where the kernels cannot run.
    """
    # Kept until the process ends: unloading a CUDA library is not safe.
    folder = Path(tempfile.mkdtemp(prefix="keras_branchy_gpu_"))
    library = folder / "gate.so"
    name = "g++" if rehearse else "nvcc"
    if shutil.which(name) is None:
        raise CouldNotRunError(f"there is no {name} on the PATH to build the kernel with")
    include = f"-I{ROOT / 'custom_ops'}"
    if rehearse:
        emulation = f"-I{ROOT / 'tests' / 'cuda_emulation'}"
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", include, emulation, "-x", "c++"]
    else:
        flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-lineinfo"]
        flags += ["-arch=native", include]
    subprocess.run([name, *flags, *map(str, SOURCES), "-o", str(library)], check=True)
    try:
        return Library(library)
    finally:
        shutil.rmtree(folder)


class Library:
    """The three functions of gate_c.cu."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        library.gate_problem.restype = ctypes.c_char_p
        library.gate_workspace.restype = ctypes.c_size_t
        library.gate_workspace.argtypes = [integer, long, long]
        library.gate_run.restype = ctypes.c_char_p
        library.gate_run.argtypes = [
            *[pointer, integer, long, long, ctypes.c_float, integer],
            *[pointer] * 5,
        ]
        problem = library.gate_problem()
        if problem:
            raise CouldNotRunError(f"the kernel cannot run here: {problem.decode()}")
        self.library = library

    def gate(self, torch, threshold, criterion="entropy"):
        """`logits -> exit, label, score` on torch's current stream.

        Outputs are allocated by torch, as are those of everyone else.
        """
        library, criterion = self.library, CRITERIA[criterion]

        def run(logits):
            rows, classes = logits.shape
            storage = STORAGES[str(logits.dtype).removeprefix("torch.")]
            made = {"device": logits.device}
            exits = torch.empty(rows, dtype=torch.bool, **made)
            labels = torch.empty(rows, dtype=torch.int64, **made)
            scores = torch.empty(rows, dtype=torch.float32, **made)
            size = library.gate_workspace(storage, rows, classes)
            workspace = torch.empty(size, dtype=torch.uint8, **made)
            stream = 0
            if logits.is_cuda:
                stream = torch.cuda.current_stream(logits.device).cuda_stream
            error = library.gate_run(
                *[logits.data_ptr(), storage, rows, classes, threshold, criterion],
                *[exits.data_ptr(), labels.data_ptr(), scores.data_ptr()],
                *[workspace.data_ptr() if size else None, stream],
            )
            if error:
                raise RuntimeError(f"the kernel was not launched: {error.decode()}")
            return exits, labels, scores

        return run
