# SPDX-License-Identifier: Apache-2.0
"""Exported models without TensorFlow and Keras: `StageRunner`."""

from keras_branchy.runner.stage_runner import CallStatistics, RunnerResult, StageRunner

__all__ = ["CallStatistics", "RunnerResult", "StageRunner"]
