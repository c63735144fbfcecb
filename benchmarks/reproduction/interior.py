# SPDX-License-Identifier: Apache-2.0
"""Whether a curve is highest inside rather than at an end, or only looks so by chance.

The highest of many noisy points is high by luck. So the best point inside and the better
end are chosen on validation images, and compared on the test images, training by training.
"""

import numpy as np

# 95 % quantiles of Student's t by degrees of freedom; beyond, the last serves.
STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


def interior(places, valid, test):
    """How much higher the inside is than the ends, in points.

    Args:
        places: Where the points of the curve are, ascending; at least three.
        valid: [seeds, places] accuracies on the validation images, 0 to 1.
        test: The same on the test images.

    Returns:
        Dict: the places `inside` and `end` that were chosen; `gain`, the mean over seeds;
        `standard_error` of it, and whether the gain `exceeds_noise`, by a one-sided t-test
        at 95 %; both None with one seed.
    """
    valid, test = np.asarray(valid), np.asarray(test)
    means = valid.mean(axis=0)
    inside = 1 + int(means[1:-1].argmax())
    end = 0 if means[0] >= means[-1] else len(places) - 1
    gains = 100 * (test[:, inside] - test[:, end])
    return {"inside": places[inside], "end": places[end], **against_noise(gains)}


def against_noise(gains):
    """`gain`, the mean of a gain for each seed, and what `interior` tells beside it."""
    gain = float(np.mean(gains))
    if len(gains) == 1:
        return {"gain": gain, "standard_error": None, "exceeds_noise": None}
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains)))
    needed = STUDENT[min(len(gains) - 1, len(STUDENT)) - 1] * error
    return {"gain": gain, "standard_error": error, "exceeds_noise": gain > needed}


def of_rows(rows, place):
    """The same of the rows of one network, a curve a seed along the column `place`."""
    places = sorted({row[place] for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    at = {(row["seed"], row[place]): row for row in rows}
    curves = (
        [[at[seed, x][key] for x in places] for seed in seeds]
        for key in ("valid_accuracy", "accuracy")
    )
    return interior(places, *curves)


def sentence(found, name, called):
    """In words, with the figures; `called` tells how to say a place."""
    gain, error = found["gain"], found["standard_error"]
    start = (
        f"{name}: the best place inside, {called(found['inside'])} by the validation "
        f"images, is {abs(gain):.2f} points {'above' if gain >= 0 else 'below'} the better "
        f"end, {called(found['end'])}, on the test images"
    )
    if error is None:
        return f"{start}; one training cannot say whether that is noise."
    if gain < 0:
        return f"{start} (standard error {error:.2f}): no maximum inside."
    verdict = "exceeds" if found["exceeds_noise"] else "does not exceed"
    return f"{start} (standard error {error:.2f}): it {verdict} the noise."
