# SPDX-License-Identifier: Apache-2.0
"""docs/phone.md names what an export of B-LeNet holds; its numbers are the manifest's."""

import ast
import functools
import re
import runpy

import pytest
from exports import root
from project import ROOT

PAGE = ROOT / "docs" / "phone.md"
CODE = re.compile(r"```(kotlin|swift|cpp)\n(.*?)```", re.DOTALL)
TENSOR = re.compile(r"\b(\w+): (\[[\d, ]+\]) (\w+)")
LITERAL = re.compile(r'"([^"\n]*)"')
# Strings that are no names of an export.
OTHER = re.compile(r"tflite|tflite/[\w/]+\.h")


@functools.cache
def manifests():
    from keras_branchy import networks

    model = networks.b_lenet()
    model.thresholds = [0.1]
    return [
        model.export_stages(root() / f"phone_{layout}", layout=layout, verbose=0)
        for layout in ("cascade", "stages")
    ]


def calls():
    for manifest in manifests():
        stages = [row["call"] for row in manifest["stages"]]
        yield from (call for call in [manifest["cascade"], *stages] if call)


def described(tensors):
    rows = sorted(tensors, key=lambda tensor: tensor["name"])
    return ", ".join(f"`{row['name']}: {row['shape']} {row['dtype']}`" for row in rows)


def test_the_table_of_tensors_is_that_of_the_manifests():
    lines = ["| call | reads | gives |", "|---|---|---|"]
    for call in calls():
        title = f"`{call['file']}`, `{call['signature']}`"
        row = f"| {title} | {described(call['inputs'])} | {described(call['outputs'])} |"
        lines.append(row)
    shown = re.search(
        r"<!-- tensors: b_lenet -->\n(.*?)\n<!-- /tensors -->",
        PAGE.read_text("utf-8"),
        re.S,
    )
    assert shown[1] == "\n".join(lines)


def snippets():
    found = CODE.findall(PAGE.read_text("utf-8"))
    assert [language for language, _ in found] == ["kotlin"] * 2 + ["swift"] * 2 + [
        "cpp"
    ] * 2
    return found


@pytest.mark.parametrize("which", range(6))
def test_a_snippet_uses_names_and_shapes_of_the_files(which):
    _, code = snippets()[which]
    cascade, *stages = calls()
    used = [cascade] if which % 2 == 0 else stages
    tensors = {t["name"]: t for call in used for t in [*call["inputs"], *call["outputs"]]}
    files = {call["file"] for call in used} | {call["signature"] for call in used}
    literals = {text for text in LITERAL.findall(code) if not OTHER.fullmatch(text)}
    assert literals <= set(tensors) | files
    assert set(tensors) <= literals, "every tensor is read or written"
    for name, shape, dtype in TENSOR.findall(code):
        assert tensors[name]["shape"] == ast.literal_eval(shape), name
        assert tensors[name]["dtype"] == dtype, name
    sizes = {" * ".join(map(str, t["shape"])) for t in tensors.values()}
    for product in re.findall(r"\d+(?: \* \d+)+", code):
        assert product in sizes, product
    for lengths in re.findall(r"Array\((\d+)\) \{ (?:Array\((\d+)\) \{ )*", code):
        assert lengths[0] == "1"


def test_kotlin_arrays_have_the_shapes_in_their_comments():
    nested = re.compile(r"= ((?:Array\(\d+\) \{ )*\w+Array\(\d+\)).*// (\w+): (\[.*?\])")
    checked = 0
    for _, code in snippets()[:2]:
        for value, name, shape in nested.findall(code):
            sizes = [int(size) for size in re.findall(r"\((\d+)\)", value)]
            assert sizes == ast.literal_eval(shape), name
            checked += 1
    assert checked >= 7


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export_litert.py", "--quick", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "export_litert.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "same label" in said and (tmp_path / "cascade" / "cascade.tflite").exists()
