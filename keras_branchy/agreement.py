# SPDX-License-Identifier: Apache-2.0
"""Where successive exits agree, which lets a model with `patience` answer early."""

from __future__ import annotations

import numpy as np

__all__ = ["agreements"]


def agreements(scores: np.ndarray, labels: np.ndarray, patience: int | None) -> np.ndarray:
    """Whether a sample leaves at an exit because this one and those before it agree.

    Args:
        scores: [M, n], of the exits that decide; an exit whose score is NaN agrees with
            none.
        labels: [M, n], their answers.
        patience: How many successive exits must agree; None for no such rule.

    Returns:
        [M, n] bool.

    Example:

    ```python
    import numpy as np
    from keras_branchy.agreement import agreements

    labels = np.array([[4, 4], [4, 7], [1, 7]])
    found = agreements(np.zeros((3, 2)), labels, patience=2)
    assert found.tolist() == [[False, False], [True, False], [False, True]]
    ```
    """
    found = np.zeros_like(labels, bool)
    if patience is None:
        return found
    previous: np.ndarray = np.full(found.shape[1], -1)
    agreed: np.ndarray = np.zeros(found.shape[1], int)
    for index, answers in enumerate(labels):
        known = ~np.isnan(scores[index])
        agreed = np.where(known & (answers == previous), agreed + 1, 1)
        previous = np.where(known, answers, -1)
        found[index] = agreed >= patience
    return found
