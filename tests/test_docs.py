# SPDX-License-Identifier: Apache-2.0
"""The code in README, in other documents and in docstrings runs as it is printed."""

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from project import PACKAGE, ROOT, source_files
from test_package import OBJECTS

import keras_branchy

FENCE = re.compile(
    r"(?:^ *<!-- *no-run:(?P<reason>.*?)-->\s*?\n)?"
    r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)

# A block that is not run says why: `<!-- no-run: needs a GPU -->` on the line before.
REASONS = {"needs a GPU", "needs the network", "trains for minutes"}


@dataclass(frozen=True)
class Block:
    line: int  # of its first line of code, from 1
    code: str
    reason: str | None


def blocks_of(text):
    """The ```python blocks of a text, in order."""
    for match in FENCE.finditer(text):
        reason = match["reason"]
        yield Block(
            line=text.count("\n", 0, match.start("code")) + 1,
            code=textwrap.dedent(match["code"]),
            reason=None if reason is None else reason.strip(),
        )


def prelude():
    """What a reader is taken to have: a small classifier, and a little data for it."""
    import keras

    inputs = keras.Input((16, 16, 3), name="image")
    x = inputs
    for block in range(1, 8):
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
        if block in (3, 6):
            x = keras.layers.MaxPooling2D(name=f"block_{block}_pool")(x)
        x = keras.layers.Activation("linear", name=f"block_{block}_out")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="predictions")(x)

    rng = np.random.default_rng(0)

    def samples():
        labels = rng.integers(0, 10, 64)
        images = rng.random((64, 16, 16, 3), np.float32) + labels[:, None, None, None] / 10
        return images.astype(np.float32), labels

    images, labels = samples()
    return {
        "backbone": keras.Model(inputs, outputs, name="backbone"),
        "images": images,
        "labels": labels,
        "train": batches(images, labels),
        "valid": batches(*samples()),
        "test": batches(*samples()),
    }


def batches(images, labels):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)


def run(block, path, scope):
    """Runs a block; its traceback shows the document and the line in it."""
    code = "\n" * (block.line - 1) + block.code
    exec(compile(code, str(path), "exec"), scope)


def documents():
    """README, and each other document that holds a ```python block."""
    found = [path for path in source_files() if path.suffix == ".md"]
    shown = [path for path in found if any(blocks_of(text(path)))]
    return sorted({"README.md", *(str(path.relative_to(ROOT)) for path in shown)})


def text(path):
    return path.read_text("utf-8")


def public_docstrings(node, dotted):
    """Dotted name, line and text of the public docstrings in a module."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring is not None:
        yield dotted, node.body[0].lineno, inspect.cleandoc(docstring)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            if not child.name.startswith("_"):
                yield from public_docstrings(child, f"{dotted}.{child.name}")


def docstring_examples():
    """Each ```python block of a public docstring, with its line in the file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name, line, docstring in public_docstrings(ast.parse(text(path)), dotted):
            for block in blocks_of(docstring):
                placed = replace(block, line=line + block.line - 1)
                yield pytest.param(path, placed, id=name)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Examples write their files where they stand, and may leave figures open."""
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def test_readme_shows_code_that_runs():
    shown = [block for block in blocks_of(text(ROOT / "README.md")) if not block.reason]
    assert shown, "README.md has no ```python block: it shows the workflow"


@pytest.mark.parametrize("name", documents())
def test_blocks_that_do_not_run_say_why(name):
    reasons = {block.reason for block in blocks_of(text(ROOT / name))} - {None}
    assert reasons <= REASONS, f"{reasons - REASONS}: one of {REASONS}"


@pytest.mark.parametrize("name", documents())
def test_blocks_of_a_document_run_in_order(name):
    scope = prelude()
    for block in blocks_of(text(ROOT / name)):
        if block.reason is None:
            run(block, ROOT / name, scope)


@pytest.mark.parametrize("path, block", list(docstring_examples()))
def test_an_example_in_a_docstring_runs(path, block):
    run(block, path, prelude())


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_every_public_object_has_an_example(name):
    docstring = inspect.getdoc(getattr(keras_branchy, name))
    assert list(blocks_of(docstring)), f"the docstring of {name} shows no ```python"


def test_blocks_are_found_with_their_lines_and_reasons():
    document = textwrap.dedent(
        """\
        # Title
        ```python
        x = 1
        ```
        <!-- no-run: needs a GPU -->
        ```python
        x = 2
        ```
        ```sh
        make
        ```
        """
    )
    assert list(blocks_of(document)) == [
        Block(3, "x = 1\n", None),
        Block(7, "x = 2\n", "needs a GPU"),
    ]
    indented = textwrap.indent("```python\ny = 1\n```\n", "    ")
    assert list(blocks_of(indented)) == [Block(2, "y = 1\n", None)]


def test_a_failing_block_fails_at_its_own_line():
    block = Block(line=7, code="x = 1\nx.nothing\n", reason=None)
    with pytest.raises(AttributeError) as caught:
        run(block, ROOT / "README.md", {})
    assert caught.traceback[-1].lineno == 8 - 1  # pytest counts from 0
