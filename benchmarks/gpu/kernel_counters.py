# SPDX-License-Identifier: Apache-2.0
"""What limits the kernel: memory or arithmetic, by Nsight Compute, shape by shape.

This program is also what Nsight Compute looks at: `--only BATCH CLASSES DTYPE` launches the
kernel a few times and prints nothing.
"""

import argparse
import csv
import io
import shutil
import subprocess
import sys

import gpu_rows
from gpu_rows import CouldNotRunError, need

SHAPES = [(65536, 10), (65536, 100), (65536, 1000), (8192, 32000), (512, 256000)]
DTYPES = ("float32", "bfloat16")
METRICS = {
    "gpu__time_duration.sum": "kernel_ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "arithmetic_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "launch__registers_per_thread": "registers",
}


def main(args, rows):
    if args.only:
        return launch(*args.only)
    if not args.rehearse:
        gpu_rows.need_gpu()
    ncu = shutil.which("ncu")
    if ncu is None:
        raise CouldNotRunError("there is no ncu on the PATH; it comes with Nsight Compute")
    need("torch")
    for batch, classes in SHAPES:
        for dtype in DTYPES:
            key = {"batch": batch, "classes": classes, "dtype": dtype}
            if not rows.has(**key):
                for found in counters(ncu, args, key):
                    rows.add(**key, **found)
    return None


def counters(ncu, args, key):
    command = [ncu, "--csv", "--target-processes", "all", "--launch-skip", "2"]
    command += ["--launch-count", "1", "--kernel-name", "regex:Row|Merge"]
    command += ["--metrics", ",".join(METRICS), sys.executable, __file__]
    command += ["--rows", str(args.rows), "--only", *map(str, key.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = parsed(done.stdout)
    if not found:
        said = (done.stderr or done.stdout).strip()[-300:]
        if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
            raise CouldNotRunError("the driver gives performance counters to root only")
        raise RuntimeError(f"ncu gave no counters: {said}")
    return found


def parsed(text):
    """One dict for each kernel in Nsight Compute's CSV, which notes stand in front of."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    kernels = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        name = METRICS.get(row.get("Metric Name"))
        if name is None:
            continue
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0]})
        kernel[name] = float(row["Metric Value"].replace(",", ""))
    return list(kernels.values())


def launch(batch, classes, dtype):
    import kernel_native

    torch = need("torch")
    gate = kernel_native.build().gate(torch, 0.5)
    shape = (int(batch), int(classes))
    z = torch.randn(shape, device="cuda").to(getattr(torch, dtype))
    for _ in range(4):
        gate(z)
    torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs=3)
    gpu_rows.run(main, parser)
