# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/inference.py measures with: networks, runtimes, turns, rows, figures."""
