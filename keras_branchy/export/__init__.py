# SPDX-License-Identifier: Apache-2.0
"""Exporting a model with exits: LiteRT, SavedModel and ONNX, each beside a manifest.

`exporter.export_stages` is what `BranchyModel.export_stages` calls.
"""
