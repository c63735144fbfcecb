# SPDX-License-Identifier: Apache-2.0
"""The figures of the papers and of BranchyNet_chainer, as printed there.

Times are one image at a time, trunk segments only, thresholds chosen on the test set; see
`timing` for how ours are taken.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figures:
    """A row of a published table.

    Attributes:
        source: Where it stands.
        plain: Accuracy of the network without exits.
        accuracy: With exits.
        plain_ms: Time of the network without exits.
        ms: With exits.
        gain: As printed.
        thresholds: Nats.
        shares: Of the images that leave at each exit.
        macs: By our count, how many times fewer MACs the published network takes at these
            shares: its trunk only, and with heads.
    """

    source: str
    plain: float
    accuracy: float
    plain_ms: float
    ms: float
    gain: float
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    macs: tuple[float, float] | None = None

    def to_json(self):
        return asdict(self)


PAPER, CHAINER = "arXiv 1709.01686, Table I, CPU", "BranchyNet_chainer"
BRANCHYNET = {
    "lenet": Figures(
        PAPER, 0.9920, 0.9925, 3.37, 0.62, 5.4, (0.025,), (0.943, 0.0563), (6.66, 4.09)
    ),
    "alexnet": Figures(
        *(PAPER, 0.7838, 0.7919, 9.56, 6.32, 1.5, (0.0001, 0.05), (0.656, 0.252, 0.092)),
        macs=(1.60, 1.44),
    ),
    "resnet": Figures(
        *(PAPER, 0.8070, 0.7917, 137.2, 73.5, 1.9, (0.3, 0.2), (0.415, 0.138, 0.447)),
        macs=(2.03, 1.41),
    ),
}
CHAINER_TABLE = {
    "lenet": Figures(CHAINER, 0.9885, 0.9896, 1.93, 0.25, 7.69, (0.5,), (0.9825, 0.0175)),
    "alexnet": Figures(
        CHAINER, 0.7625, 0.7625, 3.77, 1.30, 2.90, (0.05, 1.0), (0.5165, 0.4656, 0.0179)
    ),
    "resnet": Figures(
        CHAINER, 0.8006, 0.7496, 54.97, 54.05, 1.02, (1e-4, 1e-4), (0.4312, 0.2983, 0.2705)
    ),
}
