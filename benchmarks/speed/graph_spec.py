# SPDX-License-Identifier: Apache-2.0
"""A Keras graph as plain data: operations, attributes and arrays, for another framework.

A specification is `{"inputs": {name: id}, "outputs": {name: id}, "steps": [step, …]}` with
steps `{"op", "reads": [id, …], "makes": id, …attributes}`. Shapes are channels-last as in
Keras; kernels are as Keras holds them.
"""

import keras
import numpy as np

from keras_branchy.graph import nodes_for, producer

ACTIVATIONS = {"relu", "relu6", "softmax", "linear", "sigmoid", "tanh", "hard_swish"}


class UnknownOperationError(ValueError):
    """An operation that has no counterpart here yet."""


def spec_of(model):
    """The specification of a functional model, nested models inlined.

    Raises:
        UnknownOperationError: If an operation is not known, with its name and type.
    """
    return _Writer(model).spec


class _Writer:
    def __init__(self, model):
        self.steps, self.ids = [], {}
        inputs = named(model.input)
        for name, tensor in inputs.items():
            self.ids[id(tensor)] = f"in:{name}"
        outputs = named(model.output)
        self.graph(list(inputs.values()), list(outputs.values()))
        self.spec = {
            "inputs": {name: self.ids[id(x)] for name, x in inputs.items()},
            "outputs": {name: self.ids[id(x)] for name, x in outputs.items()},
            "steps": self.steps,
        }

    def graph(self, inputs, outputs):
        for node in nodes_for(outputs, {id(tensor) for tensor in inputs}):
            reads = [self.ids[id(tensor)] for tensor in node.input_tensors]
            made = self.call(node.operation, reads, node.input_tensors)
            self.ids[id(node.outputs[0])] = made

    def call(self, operation, reads, tensors=()):
        """Writes the steps of one call; returns the id of what it makes."""
        kind = type(operation).__name__
        write = getattr(self, f"op_{kind.lower()}", None)
        if write is None:
            raise UnknownOperationError(
                f"No counterpart for '{operation.name}', a {kind}, called on "
                f"{[tuple(x.shape) for x in tensors]}. Add it to benchmarks/speed/"
                "graph_spec.py and torch_twin.py."
            )
        return write(operation, reads)

    def step(self, op, reads, **attributes):
        made = f"t{len(self.steps)}"
        self.steps.append({"op": op, "reads": reads, "makes": made, **attributes})
        return made

    def activated(self, layer, x):
        name = getattr(layer.activation, "__name__", str(layer.activation))
        if name not in ACTIVATIONS:
            raise UnknownOperationError(
                f"No counterpart for the activation '{name}' of '{layer.name}'. Known: "
                f"{', '.join(sorted(ACTIVATIONS))}."
            )
        return x if name == "linear" else self.step("activation", [x], name=name)

    # ---- Nested models and composites ------------------------------------------------
    def op_functional(self, model, reads):
        for tensor, known in zip(model.inputs, reads, strict=True):
            self.ids[id(tensor)] = known
        self.graph(model.inputs, model.outputs)
        return self.ids[id(model.outputs[0])]

    op_sequential = op_functional

    def op_exitbranch(self, branch, reads):
        raise UnknownOperationError(
            f"'{branch.name}' is an exit; take the stages of the model, which hold its "
            "layers."
        )

    def op_linearcall(self, call, reads):
        return self.dense(call.layer, reads)

    def op_residualblock(self, block, reads):
        x = self.op_conv2d(block.conv1, reads)
        x = self.step(
            "activation", [self.op_batchnormalization(block.bn1, [x])], name="relu"
        )
        x = self.op_batchnormalization(block.bn2, [self.op_conv2d(block.conv2, [x])])
        return self.step("activation", [self.step("add", [x, *reads])], name="relu")

    # ---- Layers ----------------------------------------------------------------------
    def op_conv2d(self, layer, reads, op="conv"):
        x = self.step(
            op,
            reads,
            kernel=array(layer.kernel),
            bias=array(layer.bias) if layer.use_bias else None,
            strides=tuple(layer.strides),
            padding=layer.padding,
            dilation=tuple(layer.dilation_rate),
            groups=getattr(layer, "groups", 1),
        )
        return self.activated(layer, x)

    def op_depthwiseconv2d(self, layer, reads):
        return self.op_conv2d(layer, reads, "depthwise")

    def op_dense(self, layer, reads):
        return self.activated(layer, self.dense(layer, reads))

    def dense(self, layer, reads):
        bias = array(layer.bias) if layer.use_bias else None
        return self.step("dense", reads, kernel=array(layer.kernel), bias=bias)

    def op_batchnormalization(self, layer, reads):
        mean, variance = array(layer.moving_mean), array(layer.moving_variance)
        gamma = array(layer.gamma) if layer.scale else np.ones_like(mean)
        beta = array(layer.beta) if layer.center else np.zeros_like(mean)
        values = {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
        return self.step("batch_norm", reads, epsilon=float(layer.epsilon), **values)

    def op_maxpooling2d(self, layer, reads, op="max_pool"):
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
        return self.step(op, reads, size=size, strides=strides, padding=layer.padding)

    def op_averagepooling2d(self, layer, reads):
        return self.op_maxpooling2d(layer, reads, "average_pool")

    def op_globalaveragepooling2d(self, layer, reads):
        return self.step("global_average", reads, keepdims=bool(layer.keepdims))

    def op_zeropadding2d(self, layer, reads):
        return self.step("pad", reads, amounts=layer.padding)

    def op_relu(self, layer, reads):
        plain = not getattr(layer, "negative_slope", 0) and not getattr(
            layer, "threshold", 0
        )
        top = getattr(layer, "max_value", None)
        if not plain or top not in (None, 6, 6.0):
            raise UnknownOperationError(
                f"No counterpart for the ReLU '{layer.name}' with a slope, a threshold or "
                f"max_value={top!r}."
            )
        return self.step("activation", reads, name="relu6" if top else "relu")

    def op_relu6(self, operation, reads):
        return self.step("activation", reads, name="relu6")

    def op_softmax(self, operation, reads):
        return self.step("activation", reads, name="softmax")

    def op_activation(self, layer, reads):
        return self.activated(layer, reads[0])

    def op_add(self, layer, reads):
        return self.step("add", reads)

    def op_concatenate(self, layer, reads):
        return self.step("concatenate", reads)

    def op_flatten(self, layer, reads):
        return self.step("flatten", reads)

    def op_rescaling(self, layer, reads):
        return self.step(
            "scale", reads, scale=np.float32(layer.scale), offset=np.float32(layer.offset)
        )

    def op_stochasticdepth(self, layer, reads):
        return self.step(
            "scale", reads, scale=np.float32(layer.survival_rate), offset=np.float32(0)
        )

    def op_dropout(self, layer, reads):
        return reads[0]

    op_identity = op_dropout

    def op_localresponsenormalization(self, layer, reads):
        names = ("depth_radius", "bias", "alpha", "beta")
        return self.step("lrn", reads, **{name: getattr(layer, name) for name in names})

    def op_zeropaddedshortcut(self, layer, reads):
        return self.step("shortcut", reads, filters=layer.filters, strides=layer.strides)


def named(tensors):
    """Tensors of a model by name; a single one is called `x`."""
    if isinstance(tensors, dict):
        return dict(tensors)
    flat = keras.tree.flatten(tensors)
    if len(flat) == 1:
        return {"x": flat[0]}
    return {producer(tensor).operation.name: tensor for tensor in flat}


def array(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)
