# SPDX-License-Identifier: Apache-2.0
"""How long, and how, each network is trained: published, for two cores, and to rehearse."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Schedule:
    """Epochs of the trunk alone, and then of the branchy and of the plain network alike.

    Attributes:
        name: `"full"` is the published one where it is known, `"default"` takes at most 45
            minutes a seed of a target on two cores, `"quick"` shows that the code runs.
        trunk: Epochs of the trunk, before there are branches.
        joint: Epochs of all exits together; the plain network gets as many.
        batch_size: Images a step.
        learning_rate: Of Adam.
        cosine: True to let the learning rate of the last phase fall to zero by a cosine.
        dtype: Policy to train in; networks are measured and saved in float32.
        images: Training images, None for all.
        shift: Pixels by which an image moves at most, each way, at random, as it trains.
    """

    name: str
    trunk: int
    joint: int
    batch_size: int
    learning_rate: float = 1e-3
    cosine: bool = False
    dtype: str = "float32"
    images: int | None = None
    shift: int = 0

    def describe(self):
        falls = ", falling by a cosine" if self.cosine else ""
        images = f", {self.images:,} images" if self.images else ""
        moved = f", images moved by up to {self.shift} pixels" if self.shift else ""
        return (
            f"{self.name}: {self.trunk} + {self.joint} epochs, Adam "
            f"{self.learning_rate:g}{falls}, batch {self.batch_size}, {self.dtype}"
            f"{images}{moved}"
        )

    def to_json(self):
        return asdict(self)


FULL = {
    "lenet": Schedule("full", 50, 100, 512),
    "alexnet": Schedule("full", 50, 100, 512),
    "resnet": Schedule("full", 100, 100, 128),
    "dgate": Schedule("full", 100, 0, 128, cosine=True, dtype="mixed_bfloat16"),
    "gates": Schedule("full", 0, 100, 128, cosine=True),
    "ways": Schedule("full", 50, 100, 512),
    "heads": Schedule("full", 50, 100, 512),
    "chainer": Schedule("full", 100, 100, 512),
    "chainer-resnet": Schedule("full", 100, 100, 128),
    "layers": Schedule("full", 100, 100, 512),
}
# Smaller batches and bfloat16 so that two cores get further in the time.
_SHORT = {"cosine": True, "dtype": "mixed_bfloat16"}
DEFAULT = {
    # Moved images stand in for the published 150 epochs.
    "lenet": Schedule("default", 6, 20, 128, 2e-3, cosine=True, shift=2),
    "alexnet": Schedule("default", 6, 12, 128, **_SHORT),
    "resnet": Schedule("default", 4, 6, 128, **_SHORT, images=20_000),
    # Few epochs of all images: a trunk that knows its images by heart teaches its gates
    # nothing about others.
    "dgate": Schedule("default", 4, 0, 128, **_SHORT),
    # Gates on that trunk as it is.
    "gates": Schedule("default", 0, 100, 128, cosine=True),
    "ways": Schedule("default", 4, 12, 128, 2e-3, cosine=True, images=10_000),
    # Heads alone, on a trunk that is trained.
    "heads": Schedule("default", 0, 4, 128, 2e-3, cosine=True),
    "layers": Schedule("default", 5, 3, 128, **_SHORT, images=20_000),
    # Three seeds of two networks, within the time that others have for one.
    "chainer": Schedule("default", 5, 7, 128, **_SHORT, images=20_000),
    "chainer-resnet": Schedule("default", 3, 5, 128, **_SHORT, images=20_000),
}
QUICK = {name: Schedule("quick", 1, 1, 32, images=128) for name in DEFAULT}


def schedule(kind, name):
    """The schedule of a kind of training, a key of DEFAULT, by name."""
    return {"full": FULL, "default": DEFAULT, "quick": QUICK}[name][kind]
