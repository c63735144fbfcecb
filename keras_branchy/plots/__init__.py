# SPDX-License-Identifier: Apache-2.0
"""Figures from plain arrays. They return Axes, and neither show nor save anything.

Backgrounds are left transparent and colours are of middle lightness, so that a figure
saved with `transparent=True` can be read on a light page and on a dark one.
"""

from keras_branchy.plots.confusion import confusion
from keras_branchy.plots.costs import cost_stack
from keras_branchy.plots.exits import accuracy_against_cost, exit_shares
from keras_branchy.plots.reliability import reliability
from keras_branchy.plots.samples import contact_sheet
from keras_branchy.plots.scores import exit_histograms

__all__ = [
    "accuracy_against_cost",
    "confusion",
    "contact_sheet",
    "cost_stack",
    "exit_histograms",
    "exit_shares",
    "reliability",
]
