"""Weights files as trainers write them: which tensors are loaded, and what is refused."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from edgebench import checkpoints
from edgebench.errors import InvalidInput, UsageError
from edgebench.record import ClassMap
from edgebench.sources import open_source


class Net(torch.nn.Module):
    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, outputs)


def state(seed: int = 1, outputs: int = 5) -> dict[str, Any]:
    torch.manual_seed(seed)
    return Net(outputs).state_dict()


def prefixed(prefix: str, seed: int = 1) -> dict[str, Any]:
    return {prefix + name: value for name, value in state(seed).items()}


def loaded(file: Path | str) -> tuple[Net, list[str]]:
    module = Net()
    _, caveats = checkpoints.read(str(file)).load(module)
    return module, [caveat.code for caveat in caveats]


FORMS = {
    "distributed and compiled": {"model": prefixed("module._orig_mod.")},
    "compiled inside": {name.replace("conv.", "conv._orig_mod."): value for name, value in state().items()},
    "a field of a Lightning module": {"state_dict": prefixed("classifier.net."), "callbacks": {}, "epoch": 3},
    "network": {"net": state(), "acc": 91.5},
    "with arguments": {"state_dict": state(), "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: {
        "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}},
    "NumPy values": {"model_state_dict": state(), "best": np.float32(0.5), "history": np.arange(4), "n": np.int64(3)},
    "NumPy tensors": {name: value.numpy() for name, value in state().items()},
    "without counters": {name: value for name, value in state().items() if "num_batches" not in name},
    "with profiler's counters": {**state(), "conv.total_ops": torch.zeros(1)},
    "double": {name: value.double() if value.is_floating_point() else value for name, value in state().items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_is_loaded_by_name_without_a_doubt(tmp_path: Path, form: str) -> None:
    torch.save(FORMS[form], tmp_path / "w.pth")
    module, codes = loaded(tmp_path / "w.pth")
    assert [] == codes
    assert torch.equal(state()["conv.weight"], module.conv.weight)
    assert torch.equal(state()["head.bias"], module.head.bias)


AVERAGED = {
    "timm": {"state_dict": state(1), "state_dict_ema": state(2)},
    "detection": {"model": state(1), "ema": {"module": state(2), "updates": 7}},
    "torchvision": {"model": state(1), "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", 2)}},
    "Lightning": {"state_dict": {**prefixed("net.", 1), **prefixed("ema_net.", 2)}},
}


@pytest.mark.parametrize("form", AVERAGED)
def test_of_averaged_weights_beside_the_trained_ones_the_choice_is_said_and_can_be_made(
        tmp_path: Path, form: str) -> None:
    file = tmp_path / "w.pth"
    torch.save(AVERAGED[form], file)
    trained, codes = loaded(file)
    assert ["weights-choice"] == codes
    assert torch.equal(state(1)["conv.weight"], trained.conv.weight)
    averaged, codes = loaded(f"{file}#ema")
    assert [] == codes
    assert torch.equal(state(2)["conv.weight"], averaged.conv.weight)
    digests = {checkpoints.read(name).load(Net())[0] for name in (str(file), f"{file}#ema")}
    assert 2 == len(digests)


def test_a_file_whose_own_name_holds_the_mark_is_opened_as_it_is(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "run#3.pth")
    assert [] == loaded(tmp_path / "run#3.pth")[1]


def test_two_equal_candidates_are_refused_and_one_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"state_dict": {**prefixed("student.", 1), **prefixed("teacher.", 2)}}, file)
    with pytest.raises(InvalidInput) as caught:
        loaded(file)
    assert "#state_dict.teacher" in caught.value.hint
    assert torch.equal(state(2)["conv.weight"], loaded(f"{file}#teacher")[0].conv.weight)
    with pytest.raises(InvalidInput, match="0 sets"):
        loaded(f"{file}#critic")


def test_tensors_that_are_left_out_are_counted(tmp_path: Path) -> None:
    torch.save({"state_dict": {**prefixed("model."), "projector.weight": torch.zeros(2), "projector.bias": torch.zeros(2)}},
               tmp_path / "w.pth")
    _, caveats = checkpoints.read(str(tmp_path / "w.pth")).load(Net())
    assert ["weights-left-out"] == [caveat.code for caveat in caveats]
    assert "2 tensors" in caveats[0].message


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_a_doubt_about_the_fp32_variant(tmp_path: Path, kind: torch.dtype) -> None:
    safetensors.torch.save_file({name: value.to(kind) if value.is_floating_point() else value
                                 for name, value in state().items()}, tmp_path / "w.safetensors")
    assert ["half-weights"] == loaded(tmp_path / "w.safetensors")[1]


def test_safetensors_are_recognised_whatever_they_are_called(tmp_path: Path) -> None:
    safetensors.torch.save_file(state(), tmp_path / "weights.bin")
    assert [] == loaded(tmp_path / "weights.bin")[1]


def test_nan_in_weights_is_refused(tmp_path: Path) -> None:
    broken = state()
    broken["conv.weight"][0, 0, 0, 0] = float("nan")
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match=r"conv\.weight holds NaN"):
        loaded(tmp_path / "w.pth")


def test_what_is_no_state_dict_is_named_for_what_it_is(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "module.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, b"")
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    torch.save({"state_dict": state(), "path": PurePosixPath("x")}, tmp_path / "objects.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save(state(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    safetensors.torch.save_file(state(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-40])
    for name, words in (("module.pth", "whole pickled module"), ("script.pt", "TorchScript"), ("keras.h5", "HDF5"),
                        ("objects.pth", "pathlib"), ("list.pth", "dictionary of tensors"), ("cut.pth", "complete"),
                        ("cut.safetensors", "complete")):
        with pytest.raises(InvalidInput, match=words):
            checkpoints.read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.pth#ema", "", "."])
def test_weights_that_are_not_there_are_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        checkpoints.read(str(tmp_path / name))


def test_the_head_of_a_fine_tuned_checkpoint_gives_the_number_of_classes(tmp_path: Path) -> None:
    import timm

    torch.save({"state_dict": {f"module.{name}": value for name, value in
                               timm.create_model("test_vit", num_classes=4).state_dict().items()}}, tmp_path / "w.pth")
    source = open_source("timm:test_vit", weights=str(tmp_path / "w.pth"))
    assert 4 == source.program(torch.zeros(1, 3, *source.size_px))[0].shape[1]
    assert (None, ["unnamed-classes"]) == (source.classes, [caveat.code for caveat in source.caveats])
    four = ClassMap(ids=tuple("abcd"), names=tuple("abcd"))
    assert four == open_source("timm:test_vit", weights=str(tmp_path / "w.pth"), classes=four).classes
    three = ClassMap(ids=tuple("abc"), names=tuple("abc"))
    with pytest.raises(InvalidInput, match=r"3 classes.* 4 outputs"):
        open_source("timm:test_vit", weights=str(tmp_path / "w.pth"), classes=three)
