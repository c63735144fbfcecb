# SPDX-License-Identifier: Apache-2.0
"""B-LeNet and B-AlexNet stage by stage in PyTorch, with the shapes and weights of Keras.

A network is a list of segments of the trunk and a list of heads. Each layer is a tuple; a
name stands in front of those that have weights: `NAME/kernel` and `NAME/bias` as Keras
writes them, [rows, columns, in, out] and [in, out]. Tensors are channels-first in here, and
are put channels-last where they are flattened, so that Keras' dense weights fit.
"""

NETWORKS = {
    "b_lenet": {
        "shape": (1, 28, 28),
        "trunk": [
            [("conv", "conv1", 5, 1, 5, 3)],
            [
                *[("pool", 2), ("relu",), ("conv", "conv2", 5, 5, 10, 3)],
                *[("pool", 2), ("relu",), ("conv", "conv3", 5, 10, 20, 3)],
                *[("pool", 2), ("relu",), ("flatten",)],
                *[("dense", "fc1", 720, 84), ("dense", "fc2", 84, 10)],
            ],
        ],
        "heads": [
            [
                *[("pool", 2), ("relu",), ("conv", "exit_1/0", 3, 5, 10, 1)],
                *[("pool", 2), ("relu",), ("flatten",), ("dense", "exit_1/1", 640, 10)],
            ]
        ],
    },
    "b_alexnet": {
        "shape": (3, 32, 32),
        "trunk": [
            [
                *[("conv", "conv1", 5, 3, 32, 2), ("relu",), ("pool", 3), ("norm",)],
                ("conv", "conv2", 5, 32, 64, 2),
            ],
            [("relu",), ("pool", 3), ("norm",), ("conv", "conv3", 3, 64, 96, 1)],
            [
                *[("relu",), ("conv", "conv4", 3, 96, 96, 1), ("relu",)],
                *[("conv", "conv5", 3, 96, 64, 1), ("relu",), ("pool", 3), ("flatten",)],
                *[("dense", "fc1", 1024, 256), ("relu",)],
                *[("dense", "fc2", 256, 128), ("relu",), ("dense", "fc3", 128, 10)],
            ],
        ],
        "heads": [
            [
                *[("relu",), ("pool", 3), ("norm",), ("conv", "exit_1/0", 3, 64, 32, 1)],
                *[("relu",), ("conv", "exit_1/1", 3, 32, 32, 1), ("relu",), ("pool", 3)],
                *[("flatten",), ("dense", "exit_1/2", 512, 10)],
            ],
            [
                *[("relu",), ("pool", 3), ("norm",), ("conv", "exit_2/0", 3, 96, 32, 1)],
                *[("relu",), ("pool", 3), ("flatten",), ("dense", "exit_2/1", 128, 10)],
            ],
        ],
    },
}


def weighted(layers):
    """Name and shape of the kernel of every layer that has weights."""
    for kind, *options in layers:
        if kind == "conv":
            name, size, channels, filters, _ = options
            yield name, (size, size, channels, filters)
        elif kind == "dense":
            name, *shape = options
            yield name, tuple(shape)


def arrays_by_layer(network, arrays):
    """Kernel and bias by our names, from arrays by the paths of Keras' variables.

    Those of a head are its kernels and biases in their order.

    Raises:
        ValueError: If an array lacks or has another shape.
    """
    found = {}
    about = NETWORKS[network]
    for layers in (*about["trunk"], *about["heads"]):
        for name, shape in weighted(layers):
            layer, _, place = name.partition("/")
            kernels = [
                k for k in arrays if k.startswith(f"{layer}/") and k.endswith("kernel")
            ]
            biases = [k for k in arrays if k.startswith(f"{layer}/") and k.endswith("bias")]
            at = int(place or 0)
            if at >= len(kernels) or arrays[kernels[at]].shape != shape:
                raise ValueError(
                    f"{network}.npz has no kernel of shape {shape} for {name}. Received: "
                    f"{[(k, arrays[k].shape) for k in kernels]}. Write it with carry.py."
                )
            found[name] = arrays[kernels[at]], arrays[biases[at]]
    return found


class Network:
    """The segments and heads of one of them, on a device."""

    def __init__(self, torch, network, device, arrays=None):
        self.torch, self.about = torch, NETWORKS[network]
        self.stages = len(self.about["trunk"])
        self.weights = {}
        given = arrays and arrays_by_layer(network, arrays)
        generator = torch.Generator().manual_seed(0)
        for layers in (*self.about["trunk"], *self.about["heads"]):
            for name, shape in weighted(layers):
                if given:
                    kernel, bias = (torch.as_tensor(a) for a in given[name])
                else:
                    fan = shape[0] if len(shape) == 2 else shape[0] * shape[1] * shape[2]
                    kernel = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
                    bias = torch.zeros(shape[-1])
                order = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
                kernel = kernel.permute(order).contiguous().to(device)
                self.weights[name] = kernel, bias.to(device)

    def trunk(self, stage, x):
        return self.layers(self.about["trunk"][stage], x)

    def head(self, stage, x):
        return self.layers(self.about["heads"][stage], x)

    def layers(self, layers, x):
        for kind, *options in layers:
            x = getattr(self, kind)(x, *options)
        return x

    # ---- Layers ----------------------------------------------------------------------
    def conv(self, x, name, size, channels, filters, padding):
        return self.torch.conv2d(x, *self.weights[name], padding=padding)

    def dense(self, x, name, *shape):
        return self.torch.nn.functional.linear(x, *self.weights[name])

    def relu(self, x):
        return x.relu()

    def pool(self, x, size):
        """A step of two and "same": what lacks is padded half before and half after."""
        lacking = [max((-(-n // 2) - 1) * 2 + size - n, 0) for n in x.shape[2:]]
        rows, columns = lacking
        sides = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        if any(sides):
            x = self.torch.nn.functional.pad(x, sides, value=float("-inf"))
        return self.torch.max_pool2d(x, size, 2)

    def norm(self, x):
        """Local response normalization over three channels, k = 2, α = 5e-5, β = 0.75."""
        squares = self.torch.nn.functional.pad(x * x, (0, 0, 0, 0, 1, 1))
        total = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
        return x * (2.0 + 5e-5 * total) ** -0.75

    def flatten(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)
