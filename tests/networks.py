"""Small networks of every family as ONNX files, exported once per test session."""

from __future__ import annotations

import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import timm
import torch

SIZE = 64
NAMES = ("resnet", "mobilenet", "vit", "convnext", "clip-vit", "clip-convnext")
FAMILIES = {"resnet": "convnet", "mobilenet": "depthwise", "vit": "transformer", "convnext": "convnext",
            "clip-vit": "transformer", "clip-convnext": "convnext"}


def _module(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "resnet":
        return timm.create_model("resnet10t", num_classes=10)
    if name == "mobilenet":
        return timm.create_model("mobilenetv3_small_050", num_classes=10)
    if name == "vit":
        return timm.create_model("deit3_small_patch16_224", num_classes=10, img_size=SIZE, depth=2)
    if name == "convnext":
        return timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 2, 1))
    from open_clip.model import CLIP

    from edgebench.sources import _zero_shot

    vision = {"layers": 2, "width": 128, "head_width": 32, "patch_size": 16, "image_size": SIZE} if name == "clip-vit" \
        else {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "avg",
              "timm_proj": "linear", "image_size": SIZE}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    tower = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text).visual
    return _zero_shot(tower.eval(), torch.nn.functional.normalize(torch.randn(64, 10), dim=0))


@cache
def graph(name: str) -> Path:
    """Return the FP32 ONNX file (opset 20) of one of `NAMES`: images (N, 3, 64, 64) to 10 logits."""
    folder = Path(tempfile.mkdtemp(prefix="edgebench-networks-"))
    module = _module(name).eval()
    for part in module.modules():
        # As after training: folded into convolutions, they leave biases and channels of unequal size.
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
            part.bias.data.normal_(0, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.randn(2, 3, SIZE, SIZE),), opset_version=20, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), dynamo=True, verbose=False)
        program.save(str(folder / f"{name}.onnx"))
    return folder / f"{name}.onnx"


def noise(images: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, 3, SIZE, SIZE)).astype(np.float32)


def batches(inputs: np.ndarray, size: int = 4):
    return lambda: ({"image": inputs[start:start + size]} for start in range(0, len(inputs), size))


def answers(file: Path | onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Return the logits as ONNX Runtime computes them node by node: Q/DQ pairs round, and floats compute."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = str(file) if isinstance(file, Path) else file.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10((reference ** 2).sum() / ((reference - other) ** 2).sum()))


def uneven_depthwise(path: Path, channels: int = 64) -> Path:
    """Write a depthwise network in which half of the channels' filters are two hundred times the others.

    A clip evens out what they give, as ReLU6 does in trained networks; the logits follow the small ones.
    """
    generator = np.random.default_rng(3)
    large = np.arange(channels) % 2 == 1
    weights = {
        "stem": generator.standard_normal((channels, 3, 3, 3)) * 0.3,
        "depthwise": generator.standard_normal((channels, 1, 3, 3)) * np.where(large, 200, 1)[:, None, None, None],
        "head": generator.standard_normal((channels, 10)) * np.where(large, 0.001, 1)[:, None]}
    def write(bias: np.ndarray) -> None:
        constants = {**weights, "least": 0.0, "most": 6.0, "bias": bias}
        made = oh.make_graph(
            nodes, "uneven", [oh.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
            [oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
            [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()])
        onnx.save(oh.make_model(made, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), str(path))

    nodes = [
        oh.make_node("Conv", ["image", "stem"], ["a"], name="stem", pads=[1, 1, 1, 1], strides=[4, 4]),
        oh.make_node("Relu", ["a"], ["b"], name="relu"),
        oh.make_node("Conv", ["b", "depthwise"], ["c"], name="depthwise", group=channels, pads=[1, 1, 1, 1]),
        oh.make_node("Clip", ["c", "least", "most"], ["d"], name="clip"),
        oh.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        oh.make_node("Flatten", ["e"], ["f"], name="flatten"),
        oh.make_node("MatMul", ["f", "head"], ["g"], name="head"),
        oh.make_node("Add", ["g", "bias"], ["logits"], name="bias")]
    write(np.zeros(10))
    # All classes alike often.
    write(-answers(path, noise(64, seed=9)).mean(axis=0))
    return path
