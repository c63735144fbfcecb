# SPDX-License-Identifier: Apache-2.0
"""Energy of the GPU by NVML: its counter of millijoules, or its power, sampled.

The counter is read before and after a loop of a second or more; it counts the whole board,
idle power included, and steps every 20 to 100 ms, which a loop of that length makes a few
per cent. Where a GPU has no counter, a thread samples the power every 10 ms, and the mean
is multiplied by the time.
"""

import ctypes
import threading
import time

from gpu_rows import CouldNotRunError

SECONDS = 1.5


class Meter:
    """The first GPU's energy."""

    def __init__(self):
        try:
            self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise CouldNotRunError("libnvidia-ml.so.1 cannot be loaded") from error
        self.device = ctypes.c_void_p()
        handle = getattr(self.nvml, "nvmlDeviceGetHandleByIndex_v2", None)
        if self.nvml.nvmlInit_v2() or handle(0, ctypes.byref(self.device)):
            raise CouldNotRunError("NVML cannot be initialised or shows no GPU")
        self.method = "counter" if self._counter() is not None else "power every 10 ms"
        if self.method != "counter" and self._watts() is None:
            raise CouldNotRunError("NVML gives neither energy nor power of this GPU")

    def _counter(self):
        value = ctypes.c_ulonglong()
        function = self.nvml.nvmlDeviceGetTotalEnergyConsumption
        return None if function(self.device, ctypes.byref(value)) else value.value

    def _watts(self):
        value = ctypes.c_uint()
        failed = self.nvml.nvmlDeviceGetPowerUsage(self.device, ctypes.byref(value))
        return None if failed else value.value / 1e3

    def of(self, once, seconds=SECONDS):
        """Millijoules a call of `once`, which must wait for the GPU."""
        if self.method == "counter":
            return loop(once, seconds, self._counter)
        with _Sampler(self._watts) as sampler:
            return loop(once, seconds, sampler.millijoules)


def loop(once, seconds, read):
    """Difference of two readings over calls that fill the time, per call."""
    once()
    before, start, calls = read(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        once()
        calls += 1
    return (read() - before) / calls


class _Sampler(threading.Thread):
    """Adds up power by time."""

    def __init__(self, watts):
        super().__init__(daemon=True)
        self.watts, self.total, self.over = watts, 0.0, threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()

    def millijoules(self):
        return self.total

    def run(self):
        last = time.perf_counter()
        while not self.over.wait(0.01):
            now = time.perf_counter()
            self.total += (self.watts() or 0.0) * (now - last) * 1e3
            last = now
