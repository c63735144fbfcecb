# SPDX-License-Identifier: Apache-2.0
"""`python -m keras_branchy.cli`, where the console script is not on the path."""

from keras_branchy.cli.entry import main

main()
