# SPDX-License-Identifier: Apache-2.0
"""Whether ratios are as good as the committed ones, beyond the noise of both.

Absolute times are never compared. A ratio is worse where the whole of its interval lies
below the whole of the committed one. Both are of several starts in new processes, and span
what differs from one to the next (`starts`).
"""

from benchmarks.speed.networks import NETWORKS, UNTRAINED, NotTrainedError, files

BATCHES, STARTS = (32, 256), 2
# Times that what seems worse is measured once more: of so many ratios some do by chance.
AGAIN = 2
RATIOS = ("gain_same_runtime", "efficiency")
INTERVALS = {"gain_same_runtime": "gain_interval", "efficiency": "efficiency_interval"}
# Of what both runs differ by without anything having changed, measured on a quiet machine.
MARGIN = 0.03


def compare(committed, measured):
    """Lines of a table, and how many ratios are worse, of the rows of two files."""
    old, new = by_place(committed), by_place(measured)
    found = []
    for place in sorted(set(old) & set(new), key=str):
        for name in RATIOS:
            before, now = spans(old[place], name), spans(new[place], name)
            if before is not None and now is not None:
                found.append((place, name, before, now, verdict(before, now)))
    return found


def seem_worse(found):
    """Batch and threads of the ratios that are worse."""
    return sorted({place[1:3] for place, *_, told in found if told == "WORSE"})


def by_place(rows):
    """Our swept rows by what they are of; weights and data do not matter to them."""
    return {
        (row["runtime"], row["batch"], row["threads"], row["setting"]): row
        for row in rows
        if row.get("ours")
        and row["setting"] != "calibrated"
        and row["network"] in ("b_lenet", UNTRAINED.name)
    }


def spans(row, name):
    """The interval of a ratio, widened by MARGIN; None where it was not measured."""
    interval = row.get(INTERVALS[name])
    if interval is None:
        return None
    return interval[0] * (1 - MARGIN / 2), interval[1] * (1 + MARGIN / 2)


def verdict(before, now):
    if now[1] < before[0]:
        return "WORSE"
    return "better" if now[0] > before[1] else "same"


def table(found):
    header = ("runtime", "batch", "threads", "share", "ratio", "committed", "now", "")
    lines = [header]
    for (runtime, batch, threads, share), name, before, now, told in found:
        spans_of = [f"{low:.3f} – {high:.3f}" for low, high in (before, now)]
        lines.append((runtime, batch, threads, share, name, *spans_of, told))
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(str(cell).ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def conclusion(found):
    """One sentence, and whether all is well."""
    worse = sum(told == "WORSE" for *_, told in found)
    if not found:
        return (
            "Nothing could be compared: the committed file has none of these rows.",
            False,
        )
    if worse:
        return f"{worse} of {len(found)} ratios are worse than the committed ones.", False
    better = sum(told == "better" for *_, told in found)
    return f"{len(found)} ratios, none worse, {better} better.", True


def network(store):
    """B-LeNet as it is trained here, else untrained: time does not depend on weights."""
    try:
        files(NETWORKS["b_lenet"], store)
    except NotTrainedError:
        return UNTRAINED.name
    return "b_lenet"
