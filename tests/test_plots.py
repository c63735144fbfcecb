# SPDX-License-Identifier: Apache-2.0
"""Figures show the numbers they are given, and can be read."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from project import ROOT, fresh_python

from keras_branchy import plots
from keras_branchy.criteria import gate_scores
from keras_branchy.plots import canvas


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def boxes(ax):
    """Extents on the page of the texts inside the Axes, by text."""
    ax.figure.canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in ax.texts}


def test_accuracy_against_cost_draws_what_it_is_given(rng):
    costs, accuracies = rng.random(20), rng.random(20)
    ax = plots.accuracy_against_cost(costs, accuracies)
    x, y = ax.lines[0].get_data()
    order = np.argsort(costs)
    np.testing.assert_allclose(x, 100 * costs[order])
    np.testing.assert_allclose(y, 100 * accuracies[order])
    assert "%" in ax.get_xlabel() and "%" in ax.get_ylabel() and not ax.texts


# Mean cost and accuracy over thresholds, as different networks and data give them.
COSTS = np.linspace(0.02, 1.1, 200)
CURVES = {
    "rising": 0.98 + 0.01 * COSTS,
    "a peak, then flat": 0.98 + 0.01 * np.minimum(np.minimum(5 * COSTS, 1.5 - COSTS), 0.9),
    "flat with dents": 0.99 + 0.001 * (np.arange(200) // 9 % 2),
    "falling": 0.99 - 0.01 * COSTS,
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("chosen", [5, 30, 50, 80, 150])
@pytest.mark.parametrize("lead", [-0.002, 0.002])
def test_the_labels_of_the_points_cross_nothing(curve, chosen, lead):
    picked = (float(COSTS[chosen]), float(curve[chosen]))
    plain = (1.0, float(np.interp(1.0, COSTS, curve)) + lead)
    ax = plots.accuracy_against_cost(COSTS, curve, chosen=picked, plain=plain)
    points = [line.get_xydata()[0] for line in ax.lines[1:]]
    np.testing.assert_allclose(points, 100 * np.array([picked, plain]))
    assert [text.get_text() for text in ax.texts] == [
        f"chosen: {100 * picked[1]:.2f} %\n{100 * picked[0]:.0f} % of the cost",
        f"plain backbone: {100 * plain[1]:.2f} %\n100 % of the cost",
    ]
    first, second = boxes(ax).values()
    drawn = ax.transData.transform(100 * np.stack([COSTS, curve], 1))
    inside = ax.get_window_extent()
    assert not first.overlaps(second)
    for box in (first, second):
        assert not any(box.contains(*place) for place in drawn)
        assert all(inside.contains(*corner) for corner in box.corners())


@pytest.mark.parametrize("exits", [2, 12])
def test_exit_shares_are_bars_of_right_and_wrong_answers(rng, exits):
    shares, accuracies = rng.dirichlet(np.ones(exits)), rng.uniform(0.6, 1, exits)
    ax = plots.exit_shares(shares, accuracies)
    right, wrong = ([bar.get_width() for bar in group] for group in ax.containers)
    np.testing.assert_allclose(right, 100 * shares * accuracies)
    np.testing.assert_allclose(wrong, 100 * shares * (1 - accuracies), atol=1e-9)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0] == ("exit_1" if exits == 2 else "exit_01") and len(names) == exits
    for text, share, accuracy in zip(ax.texts, shares, accuracies, strict=True):
        assert (
            text.get_text() == f"{100 * share:.1f} %, {100 * accuracy:.2f} % of them right"
        )
    found = list(boxes(ax).values())
    assert not any(a.overlaps(b) for a, b in zip(found, found[1:], strict=False))
    tops = [label.get_window_extent().y0 for label in ax.get_yticklabels()]
    assert tops == sorted(tops, reverse=True)  # the first exit is on top


def test_an_exit_that_nobody_takes_has_no_accuracy():
    ax = plots.exit_shares([1.0, 0.0], [0.9, np.nan], names=["early", "late"])
    assert [text.get_text() for text in ax.texts][1] == "0.0 %"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["early", "late"]


def tiles(ax, rows, columns, size):
    """The images of a contact sheet, [rows, columns, H, W], NaN where there is none."""
    sheet = np.asarray(ax.images[0].get_array())
    height, width = (sheet.shape[0] // rows, sheet.shape[1] // columns)
    sheet = sheet.reshape(rows, height, columns, width, 4).swapaxes(1, 2)
    grey = np.where(sheet[..., 3] == 1, sheet[..., 0], np.nan)
    return grey[:, :, :size, :size]


def test_a_contact_sheet_shows_the_easiest_and_the_hardest_of_each_exit(rng):
    images, difficulty = rng.random((60, 5, 5)), rng.permutation(60)
    exits = np.repeat([0, 1], 30)
    ax = plots.contact_sheet(images, exits, difficulty, columns=4)
    shown = tiles(ax, 4, 4, 5)
    for row, exit_index in ((0, 0), (2, 1)):
        here = sorted(np.flatnonzero(exits == exit_index), key=lambda i: difficulty[i])
        np.testing.assert_array_equal(shown[row], images[here[:4]])
        np.testing.assert_array_equal(shown[row + 1], images[here[-4:]])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        *("exit_1, easiest", "exit_1, hardest"),
        *("exit_2, easiest", "exit_2, hardest"),
    ]


def test_a_contact_sheet_of_few_and_of_no_samples(rng):
    images = rng.random((9, 4, 4, 1))
    exits = np.array([0, 0, 2, 2, 2, 2, 2, 2, 2])
    ax = plots.contact_sheet(images, exits, np.arange(9), columns=5)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        *("exit_1, all", "exit_3, easiest", "exit_3, hardest")
    ]
    shown = tiles(ax, 3, 5, 4)
    np.testing.assert_array_equal(shown[0, :2], images[:2, ..., 0])
    # 7 samples in two rows of 5: none is shown twice.
    np.testing.assert_array_equal(shown[1, :3], images[2:5, ..., 0])
    np.testing.assert_array_equal(shown[2, :3], images[6:9, ..., 0])
    assert np.isnan(shown[:, 3:]).all()


def test_wrong_answers_are_framed_and_named(rng):
    images, labels = rng.random((8, 6, 6, 3)), np.arange(8)
    given = np.where(labels == 3, 9, labels)
    ax = plots.contact_sheet(
        images, np.zeros(8, int), labels, labels=labels, predictions=given, columns=8
    )
    assert [text.get_text() for text in ax.texts] == ["3→9"]
    (frame,) = ax.patches
    assert frame.get_x() == 3 * (6 + 2) - 0.5 and frame.get_width() == 6
    assert "right class → class given" in ax.get_xlabel()


def test_another_baseline_is_named():
    ax = plots.accuracy_against_cost(
        [0.2, 1], [0.9, 1], plain=(1.0, 1.0), baseline="last exit"
    )
    assert "of the last exit's" in ax.get_xlabel()
    assert ax.texts[0].get_text().startswith("last exit: 100.00 %")


def test_few_choices_are_dots_and_many_a_line():
    few, many = (plots.accuracy_against_cost(*np.ones((2, n))) for n in (80, 81))
    assert few.lines[0].get_marker() == "o" and many.lines[0].get_marker() == ""


# ---- Scores --------------------------------------------------------------------------
def steps(ax):
    """Counts and edges of the two histograms: of right answers, then of wrong ones."""
    return [patch.get_data()[:2] for patch in ax.patches if hasattr(patch, "get_data")]


def answers(rng, exits, classes=10, samples=400):
    """Labels and logits [N, n, C] of exits of some use."""
    labels = rng.integers(0, classes, samples)
    logits = rng.normal(0, 2, (exits, samples, classes))
    logits[:, np.arange(samples), labels] += rng.uniform(0, 9, samples)
    return labels, logits


@pytest.mark.parametrize("exits", [2, 12])
@pytest.mark.parametrize("criterion", ["entropy", "max_probability", "margin", "distance"])
def test_exit_histograms_count_right_and_wrong_answers(rng, exits, criterion):
    labels, logits = answers(rng, exits)
    scores, given = gate_scores(logits, criterion)
    correct = given == labels
    axes = plots.exit_histograms(scores, correct, [criterion] * exits, bins=15)
    assert len(axes) == exits
    low = max(scores.min(), 1e-6) if criterion == "entropy" else scores.min()
    space = np.geomspace if criterion == "entropy" else np.linspace
    edges = space(low, scores.max(), 16)
    for ax, score, good in zip(axes, np.maximum(scores, low), correct, strict=True):
        for (counts, shown), side in zip(steps(ax), (good, ~good), strict=True):
            np.testing.assert_allclose(shown, edges)
            np.testing.assert_array_equal(counts, np.histogram(score[side], edges)[0])
        assert sum(counts.sum() for counts, _ in steps(ax)) == len(labels)
        assert ax.get_xscale() == ("log" if criterion == "entropy" else "linear")
        assert ax.get_yscale() == "log" and "nobody leaves" in ax.get_xlabel()


def leaving(ax):
    """The threshold, and the ends of the span of scores that leave."""
    spans = [patch for patch in ax.patches if not hasattr(patch, "get_data")]
    (line,), (span,) = ax.lines, spans
    return line.get_xdata()[0], span.get_x(), span.get_x() + span.get_width()


def test_thresholds_are_drawn_with_the_side_that_leaves():
    scores = [[0.01, 0.1, 1.0], [0.2, 0.5, 0.9], [0.3, 0.4, 0.5]]
    axes = plots.exit_histograms(
        scores,
        np.ones((3, 3), bool),
        ["entropy", "margin", "margin"],
        thresholds=[0.05, 0.6, None],
        names=["low", "high", "never"],
    )
    assert leaving(axes[0]) == pytest.approx((0.05, 0.01, 0.05))
    assert leaving(axes[1]) == pytest.approx((0.6, 0.6, 0.9))
    assert not axes[2].lines
    assert [ax.get_xlabel() for ax in axes] == [
        "entropy, nats: leaves if < 0.05",
        "margin: leaves if ≥ 0.6",
        "margin: nobody leaves",
    ]
    assert [ax.get_title("left") for ax in axes] == ["low", "high", "never"]
    assert axes[1].get_ylabel() == "samples; red: wrong"


def test_a_threshold_beyond_all_scores_has_no_side_to_draw():
    (ax,) = plots.exit_histograms([[0.5, 0.6]], [[1, 1]], ["margin"], thresholds=[0.95])
    assert len(ax.lines) == 1 and len(ax.patches) == 2


def test_scores_that_are_none_are_told():
    scores = [[np.nan, np.inf, 0.5, 0.0]]
    (ax,) = plots.exit_histograms(scores, [[1, 0, 1, 1]], ["entropy"], bins=3)
    assert ax.get_xlabel().endswith("\n2 without a score")
    assert [counts.tolist() for counts, _ in steps(ax)] == [[1, 0, 1], [0, 0, 0]]
    (ax,) = plots.exit_histograms([[np.nan, np.nan]], [[1, 0]], ["margin"])
    assert sum(counts.sum() for counts, _ in steps(ax)) == 0


def test_equal_scores_fall_into_one_bin():
    (ax,) = plots.exit_histograms([[0.5, 0.5]], [[1, 0]], ["margin"], bins=3)
    assert [counts.tolist() for counts, _ in steps(ax)] == [[0, 1, 0]] * 2


# ---- Reliability ---------------------------------------------------------------------
@pytest.mark.parametrize("exits", [2, 12])
@pytest.mark.parametrize("bins", [5, 10, 20])
def test_reliability_is_accuracy_by_confidence(rng, exits, bins):
    sure = rng.uniform(0.25, 1, (exits, 300))
    correct = rng.random((exits, 300)) < sure**2
    axes = plots.reliability(sure, correct, bins=bins)
    for ax, confidence, right in zip(axes, sure, correct, strict=True):
        error = 0.0
        expected, dots, numbers = [], [], []
        for index in range(bins):
            here = (confidence > index / bins) & (confidence <= (index + 1) / bins)
            expected.append(right[here].mean() if here.any() else 0.0)
            if here.any():
                dots.append((confidence[here].mean(), right[here].mean()))
                numbers.append(str(here.sum()))
                error += here.mean() * abs(dots[-1][0] - dots[-1][1])
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], expected)
        points = ax.lines[1].get_xydata()
        np.testing.assert_allclose(points[np.isfinite(points[:, 1])], dots)
        assert [text.get_text() for text in ax.texts] == (numbers if bins <= 15 else [])
        assert ax.get_title("left").endswith(f": ECE {100 * error:.1f} %")
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])


def test_a_confidence_of_none_and_of_one_have_bins():
    (ax,) = plots.reliability([[0.0, 0.1, 0.1, 1.0]], [[0, 0, 1, 1]], bins=10)
    assert [text.get_text() for text in ax.texts] == ["3", "1"]
    assert ax.patches[0].get_height() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "count, text",
    [(7, "7"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9951, "10k"), (2e6, "2.0M")],
)
def test_counts_are_short(count, text):
    from keras_branchy.plots.reliability import short

    assert short(int(count)) == text


# ---- Confusion -----------------------------------------------------------------------
def counted(labels, given, classes):
    table = np.zeros((classes, classes), int)
    for right, answer in zip(labels, given, strict=True):
        table[right, answer] += 1
    return table


def opacity(table):
    """As documented: 0.1 for anything, and the rest with the root of the row's share."""
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(table / table.sum(1, keepdims=True))
    return np.where(table, 0.1 + 0.9 * np.sqrt(shares), 0)


@pytest.mark.parametrize("exits", [2, 12])
@pytest.mark.parametrize("classes", [10, 100])
def test_confusion_shows_the_share_of_each_answer(rng, exits, classes):
    labels, logits = answers(rng, exits, classes)
    labels[:classes] = np.arange(classes)
    given = logits.argmax(-1)
    for ax, row in zip(plots.confusion(labels, given), given, strict=True):
        table = counted(labels, row, classes)
        picture = np.asarray(ax.images[0].get_array())
        np.testing.assert_allclose(picture[..., 3], opacity(table))
        blue = np.isclose(picture[..., :3], to_rgb(canvas.EARLY)).all(-1)
        np.testing.assert_array_equal(blue, np.eye(classes, dtype=bool))
        numbers = {(t.get_position()[1], t.get_position()[0]): t for t in ax.texts}
        if classes > 12:
            assert not numbers
        else:
            shown = {key: int(text.get_text()) for key, text in numbers.items()}
            cells = zip(*map(np.ndarray.tolist, np.nonzero(table)), strict=True)
            assert shown == {cell: table[cell] for cell in cells}
        right = 100 * np.trace(table) / table.sum()
        assert ax.get_title("left").endswith(f": {right:.2f} % right")


def test_the_numbers_of_a_confusion_stay_in_their_cells(rng):
    labels = np.repeat(np.arange(12), 12_345)
    axes = plots.confusion(labels, np.stack([labels] * 12))
    axes[0].figure.canvas.draw()
    for ax in axes:
        cell = ax.get_window_extent().width / 12
        widths = [text.get_window_extent().width for text in ax.texts]
        assert len(widths) == 12 and max(widths) <= cell


def test_confusion_of_those_who_leave_there():
    labels, exits = np.array([0, 1, 1, 0]), np.array([0, 0, 2, 0])
    predictions = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
    axes = plots.confusion(labels, predictions, exits=exits, class_names=["cat", "dog"])
    tables = ([[2, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]])
    for ax, table in zip(axes, np.array(tables), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array()[..., 3], opacity(table))
        assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    assert [ax.get_title("left") for ax in axes] == [
        "exit_1: 66.67 % right",
        "exit_2: nobody",
        "exit_3: 100.00 % right",
    ]


# ---- Costs ---------------------------------------------------------------------------
@pytest.mark.parametrize("exits", [2, 12])
@pytest.mark.parametrize("unit, scale", [("MACs", 1e6), ("ms", 1.0)])
def test_the_cost_stack_is_a_staircase_of_parts(rng, exits, unit, scale):
    parts = {name: scale * rng.uniform(0.5, 3, exits) for name in ("trunk", "head", "gate")}
    plain = parts["trunk"].sum()
    ax = plots.cost_stack(parts, unit=unit, plain=plain)
    paid = np.cumsum(sum(parts.values())) / scale
    begin = paid - sum(parts.values()) / scale
    for group, cost in zip(ax.containers, parts.values(), strict=True):
        np.testing.assert_allclose([bar.get_x() for bar in group], begin, atol=1e-9)
        np.testing.assert_allclose([bar.get_width() for bar in group], cost / scale)
        begin = begin + cost / scale
    np.testing.assert_allclose(begin, paid)
    for text, end in zip(ax.texts, paid, strict=True):
        assert float(text.get_text()) == pytest.approx(end, rel=6e-3)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(plain / scale)
    prefix = "M " if unit == "MACs" else ""
    label = f"paid by a sample, {prefix}{unit}; dashed: without exits"
    assert ax.get_xlabel() == label
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["trunk", "head", "gate"]


STAIRS = {"six alike": np.ones(6), "twelve": np.random.default_rng(2).uniform(0.2, 1, 12)}


@pytest.mark.parametrize("stairs", STAIRS.values(), ids=STAIRS)
@pytest.mark.parametrize("share", [0.03, 0.18, 0.44, 0.7, 0.78, 0.85, 0.99, 1.0])
def test_nothing_crosses_the_numbers_of_a_cost_stack(stairs, share):
    plain = share * stairs.sum()
    ax = plots.cost_stack({"trunk": stairs}, plain=plain, unit="ms")
    ax.figure.canvas.draw()
    line = ax.transData.transform([(plain, 0)])[0, 0]
    inside = ax.get_window_extent()
    bars = [patch.get_window_extent() for patch in ax.containers[0]]
    for text in ax.texts:
        box = text.get_window_extent()
        assert not box.x0 <= line <= box.x1
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert not any(box.overlaps(bar) for bar in bars)
    legend = ax.get_legend().get_window_extent()
    assert not any(legend.overlaps(bar) for bar in bars)


def test_costs_without_a_line_or_of_nothing():
    ax = plots.cost_stack({"trunk": [0.0, 0.0]})
    assert not ax.lines and ax.get_xlabel() == "paid by a sample, MACs"
    assert ax.get_xlim() == (0, 1)


# ---- What does not fit, and what all share -------------------------------------------
@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.accuracy_against_cost([1, 2], [1]), "`costs` and `accuracies` must"),
        (lambda: plots.exit_shares([], []), "`shares` and `accuracies` must"),
        (lambda: plots.exit_shares([1, 0], [1, 1], names=["a"]), "`names` must name every"),
        (
            lambda: plots.contact_sheet(np.zeros((2, 4)), [0, 0], [0, 0]),
            r"`images` must have shape .*Received: shape \(2, 4\)",
        ),
        (
            lambda: plots.contact_sheet(np.zeros((2, 4, 4)), [0], [0, 0]),
            r"one number per image. Received: 2 images, exits of shape \(1,\)",
        ),
        (
            lambda: plots.exit_histograms(np.ones((2, 3)), np.ones((2, 3)), ["entropy"]),
            r"a row per exit.*shape \(2, 3\).*1 criteria and 1 thresholds. The last exit",
        ),
        (
            lambda: plots.exit_histograms([[1.0]], [[1]], ["certainty"]),
            "Unknown criterion 'certainty'",
        ),
        (
            lambda: plots.reliability([[1.2]], [[1]]),
            r"confidence is a probability. Received: .*shape \(1, 1\) from 1.2 to 1.2",
        ),
        (
            lambda: plots.reliability(np.ones((2, 3)), np.ones((3, 3))),
            r"correct of shape \(3, 3\). Pass predict",
        ),
        (lambda: plots.reliability([], []), "from none"),
        (
            lambda: plots.confusion([0, 1], [0, 1]),
            r"a row of classes per exit. Received: labels of shape \(2,\)",
        ),
        (
            lambda: plots.confusion([0.0, 1.0], [[0, 1]]),
            "dtype float64",
        ),
        (
            lambda: plots.confusion([0, 1], [[0, 1]], exits=[0]),
            r"exits of shape \(1,\)",
        ),
        (
            lambda: plots.confusion([0, -1], [[0, 1]]),
            "indices from 0. Received: classes from -1 to 1",
        ),
        (
            lambda: plots.confusion([0, 2], [[0, 1]], class_names=["a", "b"]),
            "classes from 0 to 2 for 2 class names",
        ),
        (lambda: plots.cost_stack({}), r"one to 4 named lists.*Received: shapes \{\}"),
        (
            lambda: plots.cost_stack({"trunk": [1, 2], "head": [1]}),
            r"Received: shapes \{'trunk': \(2,\), 'head': \(1,\)\}",
        ),
        (
            lambda: plots.cost_stack({"trunk": [1, -2]}),
            "at least 0. Received: -2 among",
        ),
        (
            lambda: plots.reliability([[1.0]] * 2, [[1]] * 2, axes=plt.gca()),
            "one Axes per exit: 2. Received: 1",
        ),
        (
            lambda: plots.reliability([[1.0]], [[1]], axes=[]),
            "one Axes per exit: 1. Received: 0",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def draw_all(ax=None, only=None):
    """Each kind of figure, one or more Axes of it; `only` one of them."""
    axes = None if ax is None else [ax]
    makers = (
        lambda: [plots.accuracy_against_cost([0.2, 1], [0.9, 1], chosen=(0.2, 0.9), ax=ax)],
        lambda: [plots.exit_shares([0.2, 0.8], [0.9, 1], ax=ax)],
        lambda: [plots.contact_sheet(np.zeros((2, 4, 4)), [0, 1], [0, 1], ax=ax)],
        lambda: [plots.cost_stack({"trunk": [1, 2]}, ax=ax)],
        lambda: plots.exit_histograms([[0.1, 0.2]], [[1, 0]], ["margin"], axes=axes),
        lambda: plots.reliability([[0.1, 0.2]], [[1, 0]], axes=axes),
        lambda: plots.confusion([0, 1], [[0, 1]], axes=axes),
    )
    for index, make in enumerate(makers):
        if only in (None, index):
            yield from make()


def test_every_figure_is_drawn_here():
    assert len(list(draw_all())) == len(plots.__all__)


def test_axes_can_be_given():
    count = len(plots.__all__)
    _, axes = plt.subplots(2, 4)
    for index, ax in zip(range(count), axes.flat, strict=False):
        assert list(draw_all(ax, only=index)) == [ax]
    assert len(plt.get_fignums()) == 1


def test_panels_stand_in_rows_of_four_and_take_axes_of_subplots():
    axes = plots.reliability(np.ones((6, 2)), np.ones((6, 2)))
    assert len(axes) == len(axes[0].figure.axes) == 6
    places = [ax.get_subplotspec().get_geometry()[:3] for ax in axes]
    assert places == [(2, 4, index) for index in range(6)]
    _, given = plt.subplots(2, 3)
    assert plots.reliability(np.ones((6, 2)), np.ones((6, 2)), axes=given) == list(
        given.flat
    )


def luminance(colour):
    parts = np.array(to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("background", ["white", "#0d1117"])
@pytest.mark.parametrize("colour", [canvas.INK, canvas.EARLY, canvas.CHOSEN, canvas.WRONG])
def test_colours_show_on_light_and_on_dark_pages(colour, background):
    light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
    # 3 to 1 is what the web's accessibility guidelines ask of figures.
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_pictures_in_the_documents_are_small_and_shown():
    folder = ROOT / "docs" / "figures"
    shown = "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    pictures = sorted(folder.iterdir())
    assert pictures
    for path in pictures:
        assert f"(figures/{path.name})" in shown and path.stat().st_size < 150_000


def test_figures_are_transparent():
    for ax in draw_all():
        assert ax.patch.get_alpha() == 0 and ax.figure.patch.get_alpha() == 0


def test_matplotlib_is_loaded_when_something_is_drawn():
    loaded = fresh_python(
        "import sys, keras_branchy.plots\n"
        "print(sorted({'matplotlib', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-branchy\[plots\]'"):
        plots.exit_shares([1.0], [1.0])
