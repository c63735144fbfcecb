# SPDX-License-Identifier: Apache-2.0
"""Figures show the numbers they are given, and can be read."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from project import fresh_python

from keras_branchy import plots
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
    ],
)
def test_arrays_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def draw_all(ax=None):
    yield plots.accuracy_against_cost([0.2, 1], [0.9, 1], chosen=(0.2, 0.9), ax=ax)
    yield plots.exit_shares([0.2, 0.8], [0.9, 1], ax=ax)
    yield plots.contact_sheet(np.zeros((4, 4, 4)), [0, 0, 1, 1], np.arange(4), ax=ax)


def test_axes_can_be_given():
    _, axes = plt.subplots(1, 3)
    for ax, drawn in zip(axes, map(lambda ax: next(draw_all(ax)), axes), strict=True):
        assert drawn is ax
    assert len(plt.get_fignums()) == 1


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
