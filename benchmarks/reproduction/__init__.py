# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks/reproduce.py: data, schedules, training, measuring, targets."""
