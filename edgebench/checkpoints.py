"""Weights files of trainers: which tensors are the model's, under which names, and with which head (needs torch)."""

from __future__ import annotations

import argparse
import codecs
import hashlib
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.errors import InvalidInput, UsageError, require
from edgebench.files import refuse_stand_in, refuse_unreadable
from edgebench.record import Caveat, sha256_file

State = dict[str, Any]
_WHAT = "a state dict (.pth or .safetensors)"
_SAVE = "save it with torch.save(model.state_dict(), FILE)"
# What wrappers of torch insert into the names of tensors, wherever a module was wrapped.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Counters of tools, which no forward pass reads.
_COUNTERS = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params)$")
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$)", re.IGNORECASE)
_OTHER = re.compile(r"optim|sched|scaler|loss|criterion|metric|callback|loops|rng", re.IGNORECASE)
_PREFERRED = ("", "state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights",
              "params")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One set of weights within a file, by the names that a model knows."""

    label: str
    """Where it lies: key of the file's dictionary and prefix of the names; empty for a plain state dict."""
    state: State
    unused: tuple[str, ...]
    """Names under the same key that belong to no set of the model's weights."""

    @property
    def averaged(self) -> bool:
        return bool(_AVERAGED.search(self.label))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A weights file that was read, before a model is chosen for it."""

    path: Path
    chosen: str | None
    """Part that the user named after ``#``; None: the usual one."""
    groups: dict[str, State]
    """Every dictionary of tensors in the file, by its key; the key is empty for a plain state dict."""

    def load(self, module: Any) -> tuple[str, tuple[Caveat, ...]]:
        """Load the weights into a torch module; returns their SHA-256 and the doubts about them.

        Tensors are assigned by name, without the prefixes that DataParallel, torch.compile and Lightning add. Only
        where no name fits are they assigned by order and shape.

        Raises:
            InvalidInput: They are of another model, of other shapes, NaN, or there are several sets to choose from.
        """
        own = module.state_dict()
        part, caveats = self._choose(own)
        state = {**{name: value for name, value in own.items() if _COUNTERS.search(name)}, **part.state}
        wrong = next((name for name in own if tuple(own[name].shape) != tuple(state[name].shape)), None)
        if wrong is not None:
            raise InvalidInput(f"{self.path}: {wrong}: expected shape {tuple(own[wrong].shape)}, "
                               f"got {tuple(state[wrong].shape)}", "check the model's name, and --classes where given")
        self._refuse_not_numbers(state)
        module.load_state_dict(state)
        stored = Counter(str(value.dtype).removeprefix("torch.") for value in state.values()
                         if value.is_floating_point())
        half = next((name for name in ("float16", "bfloat16") if stored[name] * 2 > sum(stored.values())), None)
        if half:
            caveats += (Caveat(code="half-weights", hint="use the checkpoint in float32, if there is one",
                               message=f"{self.path.name} stores its weights in {half}: every variant, FP32 included, "
                                       "computes with the rounded values"),)
        digest = sha256_file(self.path)
        if self.chosen is not None:
            digest = hashlib.sha256(f"{digest}#{part.label}".encode()).hexdigest()
        return digest, caveats

    def head_outputs(self, module: Any, classifier: str) -> int | None:
        """Return how many outputs the file's head has, where it is another number than the module's.

        Args:
            module: The architecture with its usual head.
            classifier: Name of its last linear layer.

        Returns:
            Outputs; None where the shapes agree, or where more than the head differs.
        """
        own = module.state_dict()
        fitting = self._named(self._parts(own))
        if not fitting:
            return None
        state = _preferred(fitting).state
        differing = [name for name in own if name in state and own[name].shape != state[name].shape]
        if not differing or not all(name.startswith(f"{classifier}.") for name in differing):
            return None
        heads = {int(state[name].shape[0]) for name in differing if state[name].ndim}
        return heads.pop() if len(heads) == 1 and all(
            own[name].shape[1:] == state[name].shape[1:] for name in differing) else None

    def _choose(self, own: Mapping[str, Any]) -> tuple[_Part, tuple[Caveat, ...]]:
        fitting = self._parts(own)
        if self.chosen is not None:
            named = self._named(fitting)
            if len(named) != 1:
                there = ", ".join(part.label or "the plain state dict" for part in fitting) or "none"
                raise InvalidInput(f"{self.path}: {len(named)} sets of weights of this model are called "
                                   f"{self.chosen!r}; there are: {there}",
                                   f"--weights {self.path.name}#NAME takes the set of that name")
            return named[0], self._unused(named[0])
        if not fitting:
            return self._by_position(own)
        part = _preferred(fitting)
        if len(fitting) == 1:
            return part, self._unused(part)
        others = [other for other in fitting if other is not part]
        rivals = [other.label for other in others if other.averaged == part.averaged]
        if part.label not in _PREFERRED and rivals:
            raise InvalidInput(f"{self.path} holds several sets of weights of this model: "
                               f"{', '.join(other.label for other in fitting)}",
                               "choose one: " + " or ".join(
                                   f"--weights {self.path.name}#{other.label}" for other in fitting))
        other = next((other for other in others if other.averaged), others[0])
        left = ", ".join(other.label or "the plain one" for other in others)
        name = "ema" if "ema" in _words(other.label) else other.label
        return part, (*self._unused(part), Caveat(
            code="weights-choice",
            message=f"{self.path.name} holds {len(fitting)} sets of weights; {part.label or 'the plain one'} was "
                    f"loaded, not {left}", hint=f"--weights {self.path.name}#{name} loads the other"))

    def _named(self, parts: list[_Part]) -> list[_Part]:
        if self.chosen is None:
            return parts
        chosen = self.chosen.lower()
        return [part for part in parts if part.label.lower() == chosen] \
            or [part for part in parts if chosen in _words(part.label)]

    def _parts(self, own: Mapping[str, Any]) -> list[_Part]:
        """Return every set of tensors in the file that has all the names of a model."""
        needed = {name for name in own if not _COUNTERS.search(name)}
        parts = []
        for key, written in self.groups.items():
            group = {".".join(word for word in name.split(".") if word not in _WRAPPERS): value
                     for name, value in written.items()}
            anchor = max(needed, key=len, default="")
            prefixes = sorted({name.removesuffix(anchor) for name in group
                               if name == anchor or name.endswith(f".{anchor}")}, key=len)
            for prefix in prefixes:
                inner = tuple(other for other in prefixes if other.startswith(prefix) and other != prefix)
                inside = {name.removeprefix(prefix): value for name, value in group.items()
                          if name.startswith(prefix) and not (inner and name.startswith(inner))}
                if not needed <= set(inside) or any(
                        name not in own and not _COUNTERS.search(name) for name in inside):
                    continue
                said = [word for word in prefix.rstrip(".").split(".") if word not in ("module", "model", "")]
                parts.append(_Part(
                    label=".".join([*([key] if key else []), *said]),
                    state={name: value for name, value in inside.items() if name in own},
                    unused=tuple(name for name in group
                                 if not name.startswith(tuple(prefixes)) and not _COUNTERS.search(name))))
        return parts

    def _by_position(self, own: Mapping[str, Any]) -> tuple[_Part, tuple[Caveat, ...]]:
        shapes = [tuple(value.shape) for value in own.values()]
        for key, group in self.groups.items():
            if shapes == [tuple(value.shape) for value in group.values()]:
                return _Part(label=key, state=dict(zip(own, group.values(), strict=True)), unused=()), (Caveat(
                    code="weights-by-position",
                    message=f"{self.path.name} names its tensors differently; all {len(own)} fitted by order and shape",
                    hint="check the accuracy of the FP32 variant against what is published"),)
        nearest = max(self.groups.values(), key=lambda group: len(set(own) & set(_without_wrappers(group))))
        names = set(_without_wrappers(nearest))
        missing, extra = sorted(set(own) - names), sorted(names - set(own))
        raise InvalidInput(
            f"{self.path} is for another model: {len(missing)} tensors missing (such as {_first(missing)}), "
            f"{len(extra)} unknown (such as {_first(extra)})", "check the model's name and the file")

    def _unused(self, part: _Part) -> tuple[Caveat, ...]:
        others = [name for name in part.unused if not _OTHER.search(name)]
        if not others:
            return ()
        return (Caveat(code="weights-left-out", hint="check that they belong to training alone",
                       message=f"{self.path.name}: {len(others)} tensors beside the model's were not loaded, such as "
                               f"{others[0]}"),)

    def _refuse_not_numbers(self, state: State) -> None:
        for name, value in state.items():
            if value.is_floating_point() and bool(value.isnan().any()):
                raise InvalidInput(f"{self.path}: {name} holds NaN", "training diverged: use an earlier checkpoint")


def read(weights: str) -> Checkpoint:
    """Return the tensors of a weights file; nothing in it is executed.

    Args:
        weights: The file, or ``FILE#NAME`` for one of several sets of weights in it, such as ``FILE#ema``.

    Raises:
        UsageError: No such file.
        InvalidInput: Not a file of tensors.
    """
    path, chosen = Path(weights), None
    if not path.exists() and "#" in weights:
        file, _, name = weights.rpartition("#")
        path, chosen = Path(file), name or None
    refuse_unreadable(path, _WHAT, missing=UsageError, hint="--weights takes a file, or the word random")
    refuse_stand_in(path, _WHAT)
    _refuse_other_formats(path)
    groups = dict(_groups(_safetensors(path) if _is_safetensors(path) else _unpickled(path)))
    if not groups:
        raise InvalidInput(f"{path}: expected a dictionary of tensors, and there is none", _SAVE)
    return Checkpoint(path=path, chosen=chosen, groups=groups)


def _groups(content: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield every dictionary that holds tensors by name, with its key."""
    torch = require("torch", "export")
    if not isinstance(content, Mapping) or depth > 2:
        return
    tensors = {str(name): torch.as_tensor(value) for name, value in content.items()
               if torch.is_tensor(value) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")}
    if tensors and all(isinstance(name, str) for name in content):
        yield key, tensors
    for name, value in content.items():
        if isinstance(value, Mapping) and not _OTHER.search(str(name)):
            yield from _groups(value, ".".join([*([key] if key else []), str(name)]), depth + 1)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix.lower() == ".safetensors" or (len(head) == 9 and head[8:] == b"{"
                                                     and int.from_bytes(head[:8], "little") < path.stat().st_size)


def _safetensors(path: Path) -> State:
    try:
        return dict(require("safetensors.torch", "export").load_file(str(path)))
    except (require("safetensors", "export").SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{path} does not load as weights: it is no complete safetensors file",
                           "copy or download it again, or save it again with safetensors.torch.save_file") from error


def _refuse_other_formats(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        raise InvalidInput(f"{path} is an HDF5 file, such as Keras writes; expected {_WHAT}",
                           "convert the weights to PyTorch, or export the model to ONNX")
    if path.suffix.lower() in (".onnx", ".pt2"):
        raise UsageError(f"{path} is a whole model; expected {_WHAT}", "pass it as MODEL, without --weights")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise InvalidInput(f"{path} is a TorchScript archive; expected {_WHAT}",
                           "save torch.jit.load(FILE).state_dict() with torch.save, or export the model to ONNX")
    if any(name.startswith("models/") or name == "serialized_exported_program.json" for name in names):
        raise InvalidInput(f"{path} is an exported program; expected {_WHAT}",
                           "rename it to end in .pt2 and pass it as MODEL, without --weights")


def _unpickled(path: Path) -> Any:
    torch = require("torch", "export")
    try:
        # Values that trainers keep beside the weights: building them executes nothing of the file.
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError,
            AssertionError, ImportError, OSError, UnicodeDecodeError) as error:
        classes = _needed_classes(path)
        if any(name.startswith("torch.nn.") for name in classes):
            own = max((name for name in classes if not name.startswith("torch.")), default="torch.nn.Module",
                      key=lambda name: ".models." in name)
            raise InvalidInput(f"{path} does not load as weights: it is a whole pickled module ({own}), and loading it "
                               "would execute code", _SAVE) from error
        if classes:
            raise InvalidInput(f"{path} does not load as weights: it holds objects of {', '.join(classes[:3])}, and "
                               "loading them would execute code", _SAVE) from error
        raise InvalidInput(f"{path} does not load as weights: it is no complete file of torch.save",
                           f"copy or download it again; {_SAVE}") from error


def _harmless() -> list[Any]:
    kinds = {type(np.dtype(name)) for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64",
                                               "uint8", "bool", "str", "bytes")}
    # What NumPy itself writes into a pickle of a scalar and of an array; the module has had two names.
    functions: tuple[Any, ...] = (np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0])
    return [np.dtype, np.ndarray, argparse.Namespace, codecs.encode, *kinds,
            *((function, f"numpy.{core}.multiarray.{function.__name__}")
              for core in ("core", "_core") for function in functions)]


def _needed_classes(path: Path) -> list[str]:
    torch = require("torch", "export")
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, OSError, TypeError):
        return []


def _words(label: str) -> list[str]:
    return re.split(r"[._]", label.lower())


def _preferred(parts: list[_Part]) -> _Part:
    return min(parts, key=lambda part: (
        part.averaged, _PREFERRED.index(part.label) if part.label in _PREFERRED else len(_PREFERRED)))


def _without_wrappers(group: State) -> list[str]:
    return [".".join(word for word in name.split(".") if word not in (*_WRAPPERS, "module")) for name in group]


def _first(names: list[str]) -> str:
    return names[0] if names else "–"
