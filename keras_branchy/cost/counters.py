# SPDX-License-Identifier: Apache-2.0
"""Counters for the layers and functions that Keras and this package bring."""

from __future__ import annotations

from math import prod
from typing import Any

from keras_branchy.cost.registry import (
    LAYERS,
    OPS,
    Shape,
    counts,
    free,
    macs_of,
    register,
)
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.last_exit import LinearCall
from keras_branchy.layers import (
    LocalResponseNormalization,
    ResidualBlock,
    StochasticDepth,
    ZeroPaddedShortcut,
)
from keras_branchy.masks import AttachMask

Shapes = list[Shape]


def _each_rank(*stems: str, suffix: str = "") -> list[str]:
    return [f"{stem}{rank}D{suffix}" for stem in stems for rank in (1, 2, 3)]


# ---- What multiplies no matrices -----------------------------------------------------
_JOINS = "Add Average Concatenate Maximum Minimum Multiply Subtract"
_POINTWISE = (
    "Activation ActivityRegularization AlphaDropout Dropout ELU GaussianDropout "
    "GaussianNoise Identity LayerScale LeakyReLU Masking PReLU ReLU Rescaling Softmax "
    "StochasticDepth"
)
_NORMS = (
    "BatchNormalization GroupNormalization LayerNormalization Normalization "
    "RMSNormalization UnitNormalization"
)
_SHAPES = "CenterCrop Flatten InputLayer Permute RepeatVector Reshape Resizing"
_LOOKUPS = (
    "CategoryEncoding Discretization Embedding HashedCrossing Hashing IntegerLookup "
    "StringLookup TextVectorization"
)
# Augmentation passes its input through when a model is used.
_AUGMENTATION = (
    "AugMix AutoContrast CutMix MixUp RandAugment RandomBrightness "
    "RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop "
    "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale "
    "RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation "
    "RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom"
)
for _names in (_JOINS, _POINTWISE, _NORMS, _SHAPES, _LOOKUPS, _AUGMENTATION):
    counts(*_names.split(), table=LAYERS)(free)
counts(
    *_each_rank("AveragePooling", "MaxPooling", "GlobalAveragePooling"),
    *_each_rank("AdaptiveAveragePooling", "AdaptiveMaxPooling", "GlobalMaxPooling"),
    *_each_rank("Cropping", "SpatialDropout", "UpSampling", "ZeroPadding"),
    table=LAYERS,
)(free)
for _own in (AttachMask, LocalResponseNormalization, StochasticDepth, ZeroPaddedShortcut):
    register(_own, free)


# ---- Dense layers and convolutions ---------------------------------------------------
@counts("Dense", table=LAYERS)
def _dense(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    return prod(outputs[0]) * inputs[0][-1]


@counts("EinsumDense", table=LAYERS)
def _einsum_dense(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    return _contraction(layer.equation, [inputs[0], tuple(layer.kernel.shape)])


def _contraction(equation: str, shapes: Shapes) -> int:
    """The product of all sizes that a contraction names, those of `...` included."""
    sizes, dots = _sizes(equation, shapes)
    return prod(sizes.values()) * prod(dots)


def contracted_shape(equation: str, shapes: Shapes) -> Shape:
    """The shape that a contraction makes."""
    sizes, dots = _sizes(equation, shapes)
    before, dotted, after = equation.replace(" ", "").split("->")[1].partition("...")
    first, last = (tuple(sizes[label] for label in labels) for labels in (before, after))
    return (*first, *(dots if dotted else ()), *last)


def _sizes(equation: str, shapes: Shapes) -> tuple[dict[str, int], Shape]:
    """Sizes by label, and the sizes that `...` stands for."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    dots: Shape = ()
    for term, shape in zip(terms, shapes, strict=True):
        before, dotted, after = term.partition("...")
        tail = len(shape) - len(after)
        sizes |= zip(before, shape, strict=False)
        sizes |= zip(after, shape[tail:], strict=True)
        dots = shape[len(before) : tail] if dotted else dots
    return sizes, dots


@counts("ReversibleEmbedding", table=LAYERS)
def _reversible_embedding(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    # A look-up adds an axis; in reverse it is a dense layer, which does not.
    reverse = len(outputs[0]) == len(inputs[0])
    return prod(outputs[0]) * inputs[0][-1] if reverse else 0


@counts(*_each_rank("Conv"), table=LAYERS)
def _conv(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    # kernel: [*window, channels / groups, filters]
    return prod(outputs[0]) * prod(layer.kernel.shape[:-1])


@counts(*_each_rank("Conv", suffix="Transpose"), table=LAYERS)
def _transposed_conv(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    # kernel: [*window, filters, channels]; every input element is spread over a window
    return prod(inputs[0]) * prod(layer.kernel.shape[:-1])


@counts("DepthwiseConv1D", "DepthwiseConv2D", table=LAYERS)
def _depthwise_conv(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    # kernel: [*window, channels, multiplier]
    return prod(outputs[0]) * prod(layer.kernel.shape[:-2])


@counts("SeparableConv1D", "SeparableConv2D", table=LAYERS)
def _separable_conv(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    positions = prod(outputs[0]) // layer.filters
    kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
    return positions * sum(prod(kernel.shape) for kernel in kernels)


@counts("Dot", table=LAYERS)
def _dot(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return prod(outputs[0]) * inputs[0][axis]


# ---- Recurrence ----------------------------------------------------------------------
_GATES = {"SimpleRNNCell": 1, "GRUCell": 3, "LSTMCell": 4}


@counts(*_GATES, table=LAYERS)
def _cell(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    gates = _GATES[type(layer).__name__]
    return gates * layer.units * (inputs[0][-1] + layer.units)


@counts("StackedRNNCells", table=LAYERS)
def _stacked_cells(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    made = [(1, cell.output_size) for cell in layer.cells]
    read = [inputs[0], *made[:-1]]
    return sum(
        macs_of(cell, [x], [y]) for cell, x, y in zip(layer.cells, read, made, strict=True)
    )


@counts("RNN", "SimpleRNN", "GRU", "LSTM", table=LAYERS)
def _recurrent(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    _, steps, width = inputs[0]
    return steps * macs_of(layer.cell, [(1, width)], [outputs[0]])


@counts(*_each_rank("ConvLSTM"), table=LAYERS)
def _conv_lstm(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    frames = outputs[0][2:] if layer.return_sequences else outputs[0][1:]
    kernels = (layer.cell.kernel, layer.cell.recurrent_kernel)
    once = prod(frames) // layer.filters * sum(prod(k.shape) for k in kernels)
    return inputs[0][1] * once


# ---- Attention -----------------------------------------------------------------------
@counts("MultiHeadAttention", table=LAYERS)
def _multi_head_attention(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    query, value, key = _query_value_key(inputs)
    config = layer.get_config()
    heads, axes = config["num_heads"], config["attention_axes"]
    key_width, value_width = heads * config["key_dim"], heads * config["value_dim"]
    axes = (axes,) if isinstance(axes, int) else axes or range(1, len(query) - 1)
    asking, stored = prod(query[:-1]), prod(key[:-1])
    projections = (asking * query[-1] + stored * key[-1]) * key_width + (
        stored * value[-1] + prod(outputs[0])
    ) * value_width
    attended = prod(key[axis] for axis in axes)
    return projections + asking * attended * (key_width + value_width)


@counts("GroupedQueryAttention", table=LAYERS)
def _grouped_query_attention(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    query, value, key = _query_value_key(inputs)
    config = layer.get_config()
    width = config["num_query_heads"] * config["head_dim"]
    stored_width = config["num_key_value_heads"] * config["head_dim"]
    asking, stored = prod(query[:-1]), prod(key[:-1])
    projections = (asking * query[-1] + prod(outputs[0])) * width + stored * (
        key[-1] + value[-1]
    ) * stored_width
    return projections + 2 * asking * key[1] * width


@counts("Attention", "AdditiveAttention", table=LAYERS)
def _attention(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    query, value, key = _query_value_key(inputs)
    return prod(query[:-1]) * key[-2] * (key[-1] + value[-1])


def _query_value_key(inputs: Shapes) -> Shapes:
    query, value, *rest = inputs
    # A mask, which may follow, has no axis of features.
    given = bool(rest) and len(rest[0]) == len(value)
    return [query, value, rest[0] if given else value]


# ---- Wrappers ------------------------------------------------------------------------
@counts("Bidirectional", table=LAYERS)
def _bidirectional(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    both = (layer.forward_layer, layer.backward_layer)
    return sum(macs_of(one, inputs, outputs) for one in both)


@counts("TimeDistributed", table=LAYERS)
def _time_distributed(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    one_step = [[(1, *shape[2:])] for shape in (inputs[0], outputs[0])]
    return inputs[0][1] * macs_of(layer.layer, *one_step)


@counts("SpectralNormalization", table=LAYERS)
def _wrapped(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    return macs_of(layer.layer, inputs, outputs)


register(LinearCall, _wrapped)


def _exit_branch(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    total, shape = 0, inputs[0]
    for step in (*layer.head, layer.classifier):
        made = tuple(step.compute_output_shape(shape))
        total += macs_of(step, [shape], [made])
        shape = made
    return total


register(ExitBranch, _exit_branch)


def _residual_block(layer: Any, inputs: Shapes, outputs: Shapes) -> int:
    return 2 * prod(outputs[0]) * 9 * layer.filters


register(ResidualBlock, _residual_block)


# ---- Functions of keras.ops ----------------------------------------------------------
@counts("Matmul", "Dot", table=OPS)
def _matmul(operation: Any, inputs: Shapes, outputs: Shapes) -> int:
    return prod(outputs[0]) * inputs[0][-1]


@counts("Einsum", table=OPS)
def _einsum(operation: Any, inputs: Shapes, outputs: Shapes) -> int:
    return _contraction(operation.subscripts, inputs)


@counts("Conv", table=OPS)
def _conv_op(operation: Any, inputs: Shapes, outputs: Shapes) -> int:
    return prod(outputs[0]) * prod(inputs[1][:-1])


@counts("DepthwiseConv", table=OPS)
def _depthwise_conv_op(operation: Any, inputs: Shapes, outputs: Shapes) -> int:
    return prod(outputs[0]) * prod(inputs[1][:-2])


@counts("DotProductAttention", table=OPS)
def _dot_product_attention(operation: Any, inputs: Shapes, outputs: Shapes) -> int:
    query, key, value = inputs[:3]  # [B, T, heads, width] and [B, S, heads, width]
    return prod(query[:-1]) * key[1] * (key[-1] + value[-1])


# These do multiply, and are too rare to be worth a formula.
_UNCOUNTED = (
    "AssociativeScan CDist Cholesky CholeskyInverse Cond ConvTranspose Corrcoef Correlate "
    "Cross Det Eig Eigh FFT FFT2 ForiLoop IFFT2 IRFFT ISTFT Inner Inv JVP Kron Logdet "
    "Lstsq LuFactor Map MatrixRank Outer Pinv Qr RFFT SVD STFT Scan SeparableConv "
    "Slogdet Solve SolveTriangular Switch Tensordot Vdot VectorizedMap WhileLoop"
)
OPS.update(dict.fromkeys(_UNCOUNTED.split()))
