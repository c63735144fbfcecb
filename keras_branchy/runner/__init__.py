# SPDX-License-Identifier: Apache-2.0
"""Exported models without TensorFlow and Keras: `StageRunner`."""

from keras_branchy.runner.result import CallStatistics, RunnerResult
from keras_branchy.runner.stage_runner import StageRunner

__all__ = ["CallStatistics", "RunnerResult", "StageRunner"]
