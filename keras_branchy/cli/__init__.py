# SPDX-License-Identifier: Apache-2.0
"""The command line, `keras-branchy`: the workflow from a shell. Needs the extra `[cli]`."""
