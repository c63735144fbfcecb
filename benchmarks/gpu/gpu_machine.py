# SPDX-License-Identifier: Apache-2.0
"""What is on this machine: one row for each thing that a part needs."""

import shutil
import subprocess

import gpu_rows


def main(args, rows):
    rows.rows = []
    for program in ("nvidia-smi", "nvcc", "g++", "compute-sanitizer", "ncu", "nsys"):
        rows.add(what=program, found=version_of(program))
    for module in ("torch", "triton", "cupy", "jax", "tensorflow", "keras", "h5py"):
        rows.add(what=module, found=import_of(module))
    if not args.rehearse:
        gpu_rows.need_gpu()
        print("\n".join(gpu_rows.driver()))


def version_of(program):
    """The last line of its version, or None."""
    path = shutil.which(program)
    if path is None:
        return None
    option = ["--version"] if program != "nvidia-smi" else ["-L"]
    done = subprocess.run([path, *option], capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    return " ".join(lines[0 if program == "g++" else -1].split(" (UUID")[0].split())


def import_of(module):
    """Its version by its distribution, without the seconds that an import takes."""
    return gpu_rows.made_with()["versions"].get(module)


if __name__ == "__main__":
    gpu_rows.run(main)
