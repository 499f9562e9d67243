"""Runtimes' messages lose what means nothing to a user."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench.runtime_messages import LIMIT, shown, useful

ORT = ("[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/tmpa1b2c3d4/.part-x9/base-20.onnx failed:/build/core/graph/"
       "graph.cc:46 void onnxruntime::Graph::Check(const std::map<std::string, int>&, bool) const Node 'a' is wrong\n")
OPENVINO = ("Check 'false' failed at src/frontends/report.cpp:151:\nFrontEnd API failed with OpConversionFailure:\nModel "
            "wasn't fully converted. Failed operations detailed log:\n-- Loop-16 with a message:\n[ONNX Frontend] Conversion "
            "failed for Loop-16\nCheck '(a)' failed at src/op/loop.cpp:20:\nWhile validating ONNX node '<Node(Loop): x>':\n"
            "Bodies must be constant\n\nSummary:\n-- Conversion is failed for: Loop-16\n")


@pytest.mark.parametrize(("text", "line"), [
    (ORT, "Node 'a' is wrong"), (OPENVINO, "Bodies must be constant"),
    ("/x/onnx/version_converter/BaseConverter.h:73: adapter_lookup: Assertion `false` failed: No Adapter for Foo",
     "No Adapter for Foo"),
    ("Could not open /tmp/tmpabcdefgh/model.xml", "Could not open the model"),
    ("cannot read /home/me/nets/model.onnx", "cannot read /home/me/nets/model.onnx"),
    ("Nodes in a graph must be topologically sorted\n\n==> Context: Bad node spec", "Nodes in a graph must be topologically sorted"),
    ("\x1b[1;31mred\x1b[m", "red"), ("ratio 3:4 of a(b) stays", "ratio 3:4 of a(b) stays"), ("", "")])
def test_the_first_useful_line_is_left(text, line):
    assert line == useful(text)


def test_an_exception_without_words_is_named():
    assert "RuntimeError" == useful(RuntimeError())


def test_long_lines_end():
    assert LIMIT + 1 == len(useful("a" * 1000))


def test_scratch_files_are_the_model_and_others_keep_their_path(tmp_path):
    assert "the model" == shown(Path("/out/.part-abc/ort-fp32/model.onnx")) == shown(Path("/tmp/tmp12345678/a.onnx"))
    assert str(tmp_path / "a.onnx") == shown(tmp_path / "a.onnx")
