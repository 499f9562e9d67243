"""Exported programs (.pt2) as they are saved: what is taken, and what is refused in words."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim, ExportedProgram, export, save

from edgebench import conversion
from edgebench.errors import EdgebenchError, InvalidInput
from edgebench.sources import open_source


class Net(torch.nn.Module):
    def __init__(self, gives: str = "logits") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 5)
        self.gives = gives

    def forward(self, picture: Any, scale: Any = None) -> Any:
        features = self.conv(picture.to(self.conv.weight.dtype))
        pooled = self.norm(features).mean((2, 3))
        logits = self.head(pooled) * (1.0 if scale is None else scale)
        return {"logits": logits, "pair": (pooled, logits), "dict": {"pooled": pooled, "logits": logits},
                "none": (logits, None), "list": [logits], "map": features}[self.gives]


PICTURE = torch.randn(2, 3, 12, 12)


def program(gives: str = "logits", *arguments: Any, **options: Any) -> ExportedProgram:
    return export(Net(gives).eval(), arguments or (PICTURE,), **options)


TAKEN = {
    "a batch that may vary": lambda: program(dynamic_shapes={"picture": {0: Dim("n", min=1, max=32)}}),
    "a batch that torch finds out": lambda: program(dynamic_shapes={"picture": {0: Dim.AUTO}}),
    "the image by name": lambda: export(Net().eval(), (), kwargs={"picture": PICTURE}),
    "a constant by name": lambda: export(Net().eval(), (PICTURE,), kwargs={"scale": 3.0}),
    "several outputs": lambda: program("pair"),
    "a dictionary": lambda: program("dict"),
    "an output that is none": lambda: program("none"),
    "a list": lambda: program("list"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_programs_answer_like_their_module_whatever_their_arguments_and_outputs_are(tmp_path: Path, kind: str) -> None:
    save(TAKEN[kind](), tmp_path / "net.pt2")
    source = open_source(str(tmp_path / "net.pt2"))
    base = conversion.to_onnx(source, 20, tmp_path)
    answers = conversion.reference_outputs(source, base, PICTURE.numpy())
    with torch.inference_mode():
        expected = Net().eval()(PICTURE, 3.0 if "constant" in kind else None).numpy()
    np.testing.assert_allclose(expected, next(iter(answers.values())), atol=1e-5)


def test_sample_inputs_are_not_needed(tmp_path: Path) -> None:
    bare = program()
    bare._example_inputs = None
    save(bare, tmp_path / "net.pt2")
    assert (12, 12) == open_source(str(tmp_path / "net.pt2")).size_px


REFUSED = {
    "half": (lambda: export(Net().eval().half(), (PICTURE.half(),)), "float16"),
    "double": (lambda: export(Net().eval().double(), (PICTURE.double(),)), "float64"),
    "integers": (lambda: program("logits", torch.zeros(2, 3, 12, 12, dtype=torch.uint8)), "uint8"),
    "two inputs": (lambda: export(Net().eval(), (PICTURE, torch.ones(1))), "float32 image input"),
    "sizes": (lambda: program(dynamic_shapes={"picture": {2: Dim("h", min=8, max=32), 3: Dim("w", min=8, max=32)}}),
              "may vary"),
    "training": (lambda: export(Net().train(), (PICTURE,)), "training mode"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_programs_that_no_recipe_can_feed_are_refused_when_they_are_opened(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    save(make(), tmp_path / "net.pt2")
    with pytest.raises(InvalidInput, match=words) as caught:
        open_source(str(tmp_path / "net.pt2"))
    assert str(tmp_path / "net.pt2") in caught.value.message
    assert caught.value.hint


def test_a_program_without_logits_is_named_and_no_file_of_ours(tmp_path: Path) -> None:
    save(program("map"), tmp_path / "net.pt2")
    source = open_source(str(tmp_path / "net.pt2"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(EdgebenchError) as caught:
        conversion.to_onnx(source, 20, scratch)
    assert "scratch" not in caught.value.message
    assert "net.pt2" in caught.value.message


def test_archives_of_another_kind_or_version_are_named(tmp_path: Path) -> None:
    save(program(), tmp_path / "whole.pt2")
    content = (tmp_path / "whole.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(content[:-len(content) // 3])
    torch.save(Net().state_dict(), tmp_path / "state.pt2")
    with zipfile.ZipFile(tmp_path / "script.pt2", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with zipfile.ZipFile(tmp_path / "whole.pt2") as whole, zipfile.ZipFile(tmp_path / "empty.pt2", "w") as other:
        for name in whole.namelist():
            other.writestr(name, b"{}" if name.endswith(".json") else whole.read(name))
    for name, words in (("cut", "cut short"), ("state", "torch.save"), ("script", "TorchScript"),
                        ("empty", torch.__version__)):
        with pytest.raises(InvalidInput) as caught:
            open_source(str(tmp_path / f"{name}.pt2"))
        assert words in caught.value.message
        assert "warnings above" not in caught.value.message
