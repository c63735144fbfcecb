# SPDX-License-Identifier: Apache-2.0
"""Where staged inference spends its time: stages, gate, masking, waiting."""

import re
import tempfile
from collections import Counter
from pathlib import Path

from gpu_rows import short

CALLS = 10
# Types of operations that choose who goes on, and put their answers back in their places.
MASKING = {"Where", "GatherV2", "TensorScatterUpdate", "LogicalNot", "LogicalOr", "Squeeze"}
GATE = {"KerasBranchy>ExitGate"}
COPIES = re.compile(r"memcpy|memset", re.IGNORECASE)
# NAME:TYPE, as the host's tracer writes an operation.
OPERATION = re.compile(r"^[\w./>-]+:_?[A-Z][\w>]*$")
D2H = re.compile(r"memcpy ?(d2h|dtoh)", re.IGNORECASE)


def of(bench, images, thresholds):
    """Shares of the time of `CALLS` calls, and how often the host read from the GPU."""
    tf = bench.tf
    given = tf.constant(images), tf.constant(thresholds, tf.float32)

    def call():
        return bench.model.early_exit(*given)["labels"].numpy()

    call()
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Level 3 shows cheap operations too.
            level = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
            tf.profiler.experimental.start(folder, options=level)
            for _ in range(CALLS):
                call()
            tf.profiler.experimental.stop()
            planes = read(Path(folder))
        except Exception as error:  # no profile is a finding too
            return {"reason": short(error)}
    return shares(planes)


def read(folder):
    """(plane, line, name, type, start ns, length ns) of every event of every plane."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    events = []
    for plane in space.planes:
        names = {key: value.name for key, value in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                stats = {names[s.metadata_id]: text(s, names) for s in event.stats}
                name = plane.event_metadata[event.metadata_id].name
                op = stats.get("tf_op") or stats.get("name") or name
                begin = line.timestamp_ns + event.offset_ps / 1e3
                events.append(
                    (plane.name, line.name, name, op, begin, event.duration_ps / 1e3)
                )
    return events


def text(stat, names):
    kind = stat.WhichOneof("value")
    if kind == "ref_value":
        return names.get(stat.ref_value, "")
    return str(getattr(stat, kind)) if kind else ""


def shares(events):
    """The same by class; of the GPU's streams where there are any, else of the host's ops.

    Waiting is the time in which no stream works while a call runs.
    """
    device = [e for e in events if e[0].startswith("/device:GPU") and "Stream" in e[1]]
    chosen = device or [e for e in events if "CPU" in e[0] and OPERATION.match(e[3])]
    if not chosen:
        return {"reason": "the profile holds no operation"}
    by_class, by_type = Counter(), Counter()
    for _, _, name, op, _, length in chosen:
        kind = op.rsplit(":", 1)[-1] if ":" in op else name
        by_class[class_of(kind, name)] += length
        by_type[kind] += length
    busy = covered([(begin, begin + length) for *_, begin, length in chosen])
    span = max(b + n for *_, b, n in chosen) - min(b for *_, b, _ in chosen)
    total = sum(by_class.values()) or 1
    found = {"measured_on": "GPU streams" if device else "host", "calls": CALLS}
    for name in ("stages", "gate", "masking", "copies"):
        found[f"{name}_share"] = round(by_class[name] / total * busy / span, 4)
    found["waiting_share"] = round(1 - busy / span, 4)
    reads = sum(bool(D2H.search(e[2])) for e in chosen)
    found["host_reads_per_call"] = reads / CALLS if device else None
    found["where_per_call"] = sum(is_type(e, "Where") for e in chosen) / CALLS
    found["most_time"] = {k: round(v / CALLS / 1e3, 2) for k, v in by_type.most_common(12)}
    return found


def is_type(event, kind):
    return event[3].rsplit(":", 1)[-1] == kind


def class_of(kind, name):
    if kind in GATE:
        return "gate"
    if kind in MASKING:
        return "masking"
    return "copies" if COPIES.search(name) else "stages"


def covered(spans):
    """Length of the union of spans."""
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(spans):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total
