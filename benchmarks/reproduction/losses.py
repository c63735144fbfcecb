# SPDX-License-Identifier: Apache-2.0
"""Whether gates trained with the hinge loss beat those trained with crossentropy."""

import numpy as np

POINTS = 25  # of the range of costs that both curves reach


def compared(curves):
    """Hinge less crossentropy at equal MACs, in points of accuracy on the test images.

    Args:
        curves: Rows with `gates`, `seed`, `accuracy` and `macs`, of several costs for each.

    Returns:
        Dict: `costs`, in shares of the whole network's MACs, that both reach for every
        seed, and `points` [seeds, costs], interpolated between measured costs.
    """
    lines = {}
    for row in curves:
        cost = row["macs"]["everything"] / row["macs"]["plain"]
        lines.setdefault((row["gates"], row["seed"]), {})[cost] = 100 * row["accuracy"]
    lines = {key: np.array(sorted(line.items())).T for key, line in lines.items()}
    least = max(costs[0] for costs, _ in lines.values())
    most = min(costs[-1] for costs, _ in lines.values())
    costs = np.linspace(least, most, POINTS)
    seeds = sorted({seed for _, seed in lines})
    points = [
        np.interp(costs, *lines["hinge", seed])
        - np.interp(costs, *lines["crossentropy", seed])
        for seed in seeds
    ]
    return {"costs": costs, "points": np.array(points)}


def saved(document, most=0.02):
    """The most MACs that each loss saves while it loses at most so much on the test images.

    Returns:
        Shares saved by `gates`, the mean over seeds; 0 where every point loses more.
    """
    whole = {
        (row["gates"], row["seed"]): row["exit_accuracies"][-1] for row in document["rows"]
    }
    found = dict.fromkeys(whole, 0.0)
    for row in [*document["curves"], *document["rows"]]:
        key = row["gates"], row["seed"]
        if row["accuracy"] >= whole[key] - most:
            found[key] = max(found[key], 1 - 1 / row["macs"]["gain_everything"])
    kinds = dict.fromkeys(kind for kind, _ in found)
    return {
        kind: float(np.mean([share for (k, _), share in found.items() if k == kind]))
        for kind in kinds
    }


def sentence(curves):
    """What was found, beside what was published."""
    found = compared(curves)
    costs, points = found["costs"], found["points"].mean(0)
    least, most = sorted((points.min(), points.max()), key=abs)
    if least * most > 0:
        side = "above" if most > 0 else "below"
        span = f"{abs(least):.1f} to {abs(most):.1f} points {side}"
    else:
        span = f"{points.min():+.1f} to {points.max():+.1f} points beside"
    middle = len(costs) // 2
    more = np.abs(points[:middle]).mean() > np.abs(points[middle:]).mean()
    seen = "is" if points.min() > 0 and more else "is not"
    count = len(found["points"])
    few = "" if count > 2 else f" One or two trunks ({count}) are little evidence."
    return (
        f"At equal MACs, heads counted, from {100 * costs[0]:.0f} to "
        f"{100 * costs[-1]:.0f} % of the network's, gates trained with the hinge loss are "
        f"{span} those trained with crossentropy (mean {points.mean():+.1f}), and the "
        f"difference is {'larger' if more else 'smaller'} the fewer they are. Published: "
        f"above, and the more so the fewer. That {seen} seen here.{few}"
    )
