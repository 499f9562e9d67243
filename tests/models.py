"""Small networks, ONNX graphs and artifacts that tests share."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import torch

TINY = "timm:test_efficientnet.r160_in1k"
CLASSES = ("cat", "dog", "owl")


def tiny_weights(folder: Path, classes: int = 3) -> Path:
    """Write the state dict of a tiny EfficientNet whose answers depend on its input."""
    import timm

    torch.manual_seed(1)
    module = timm.create_model("test_efficientnet", num_classes=classes)
    with torch.no_grad():
        module.train()
        for _ in range(3):
            module(torch.randn(8, 3, 160, 160))
        module.classifier.weight.normal_(0, 0.3)
    file = folder / f"tiny-{classes}.pth"
    torch.save(module.state_dict(), file)
    return file


def class_file(folder: Path, names: tuple[str, ...] = CLASSES) -> Path:
    file = folder / "classes.txt"
    file.write_text("\n".join(names) + "\n")
    return file


def onnx_file(path: Path, *, input_shape: list[object] = ["n", 3, 8, 8], outputs: str = "logits",  # noqa: B006
              dtype: int = onnx.TensorProto.FLOAT, external: bool = False, seed: int = 0) -> Path:
    """Write a small ONNX classifier: mean over space, then a matrix product; or something that is no classifier."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((3, 3)).astype(np.float32)
    nodes = [oh.make_node("ReduceMean", ["image", "axes"], ["pooled"], keepdims=0),
             oh.make_node("MatMul", ["pooled", "weight"], ["logits"])]
    shape: list[object] = [input_shape[0], 3]
    if outputs == "features":
        nodes, shape = [oh.make_node("Relu", ["image"], ["logits"])], input_shape
    if dtype != onnx.TensorProto.FLOAT:
        nodes = [oh.make_node("Cast", ["image"], ["real"], to=onnx.TensorProto.FLOAT),
                 oh.make_node("ReduceMean", ["real", "axes"], ["pooled"], keepdims=0), nodes[1]]
    axes = [1, 2] if input_shape[-1] == 3 else [2, 3]
    graph = oh.make_graph(
        nodes, "tiny", [oh.make_tensor_value_info("image", dtype, input_shape)],
        [oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(np.array(axes, np.int64), "axes"), onnx.numpy_helper.from_array(weight, "weight")])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    if external:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save(model, str(path))
    return path


def preprocess_file(folder: Path, size: int = 8) -> Path:
    file = folder / "preprocess.toml"
    file.write_text(f'size_px = [{size}, {size}]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nresize = "squash"\n')
    return file


def quietly(function, *arguments, **options):
    """Call something that prints to standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **options)
