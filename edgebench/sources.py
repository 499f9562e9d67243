"""Models before export: timm, open_clip, exported programs, ONNX files and the built-in demo (needs torch).

Each source becomes an eval-mode program with its preprocessing and class map.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import pickle
import socket
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from edgebench import arrays, checkpoints, graphs, outputs
from edgebench.datasets import DEMO, ImageSet, imagenet_wnids
from edgebench.errors import InvalidInput, UsageError, require, unknown
from edgebench.files import refuse_stand_in, refuse_unreadable
from edgebench.imagecache import CACHE_HINT, cache_root
from edgebench.record import Caveat, ClassMap, ModelIdentity, Preprocess, sha256_file

Progress = Callable[[str, int, int], None]
"""Told (what, done, total)."""
# OpenAI's and the paper's scale of the cosine similarities, fixed in the graph: it is the classifier's temperature.
ZERO_SHOT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained network, ready to be exported."""

    identity: ModelIdentity
    program: Any
    """torch Module in eval mode, ExportedProgram, or None where `onnx` is the model."""
    features: bool = False
    """Whether `program` returns (logits (N, K), features (N, D)): what its last linear layer reads."""
    at_size: Callable[[int], Any] | None = None
    """Returns the program for inputs of another height and width (px); None where the source cannot change it."""
    onnx: Path | None = None
    """The ONNX file that is the model; None for programs."""
    file: Path | None = None
    """The file that holds the whole model; None for models of a library."""
    size_px: tuple[int, int] | None
    """Height and width of the input; None for an ONNX file, whose own input says it."""
    preprocess: Preprocess | None
    classes: ClassMap | None
    calibration: ImageSet | None = None
    """Quantization-calibration images that the source brings along."""
    evaluation: str | None = None
    """Where its own evaluation images are."""
    caveats: tuple[Caveat, ...] = ()
    output: str | None = None
    """Which output is scored, as ``NAME`` or ``NAME=KIND``; None: see `edgebench.outputs.put_first`."""
    written: graphs.Written = field(default_factory=graphs.Written)
    """The precision that an ONNX file comes in; FP32 for all others."""



def open_source(model: str, *, weights: str | None = None, classes: ClassMap | None = None,
                templates: Sequence[str] | None = None, preprocess: Preprocess | None = None,
                output: str | None = None, progress: Progress = lambda what, done, total: None) -> Source:
    """Return the source that `model` names.

    Args:
        model: ``timm:NAME[.TAG]``, ``open_clip:ARCH/TAG``, ``demo:inspection``, or a path to ``.onnx`` or ``.pt2``.
        weights: A local state dict, ``random``, or None for the published weights.
        classes: Instead of the source's own class map.
        templates: Prompt templates with ``{}`` for a zero-shot head; the 80 of OpenAI by default.
        preprocess: Instead of the source's own preprocessing.
        output: Which output is scored, and what it holds.
        progress: Told about long steps.

    Raises:
        UsageError: Not a model that can be named.
        InvalidInput: Weights that do not load, or cannot be fetched.
    """
    if output is not None:
        outputs.refuse_unfit_option(output)
    scheme, _, name = model.partition(":")
    suffix = Path(model).suffix.lower()
    if suffix == ".onnx":
        source = _onnx_file(Path(model), weights, classes)
    elif suffix == ".pt2":
        source = _exported_program(Path(model), weights, classes)
    elif scheme == "timm" and name:
        source = _timm(name, weights, classes, preprocess)
    elif scheme == "open_clip" and name:
        source = _open_clip(name, weights, classes, templates, preprocess, progress)
    elif model == DEMO:
        if weights is not None:
            raise UsageError(f"{DEMO} brings its own weights: leave --weights away")
        from edgebench.demo import inspection

        source = inspection(progress)
    elif scheme == "demo":
        raise unknown("demo", model, [DEMO])
    else:
        raise UsageError(f"cannot tell what model {model!r} is",
                         "expected timm:NAME[.TAG], open_clip:ARCH/TAG, demo:inspection, a .onnx or .pt2 file, or an "
                         "artifact folder")
    source = replace(source, output=output)
    if preprocess is None:
        return source
    if source.size_px is not None and source.size_px != preprocess.size_px:
        raise InvalidInput(f"{model} takes {source.size_px[0]}×{source.size_px[1]} pixels (height × width), the "
                           f"preprocessing gives {preprocess.size_px[0]}×{preprocess.size_px[1]}",
                           "change size_px in the --preprocess file")
    return replace(source, preprocess=preprocess)


def _imagenet_map() -> ClassMap:
    info = require("timm.data", "export").ImageNetInfo("imagenet-1k")
    wnids = imagenet_wnids()
    return ClassMap(ids=wnids, names=tuple(str(info.index_to_description(k)) for k in range(len(wnids))))


def _timm(name: str, weights: str | None, classes: ClassMap | None, preprocess: Preprocess | None) -> Source:
    torch = require("torch", "export")
    timm = require("timm", "export")
    data = require("timm.data", "export")
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:4]
        raise UsageError(f"timm has no model {name!r}",
                         f"similar: {', '.join(near)}" if near else "timm.list_models() lists them")
    torch.manual_seed(0)
    overrides = {"num_classes": len(classes.ids)} if classes is not None else {}
    try:
        module = timm.create_model(name, pretrained=False, **overrides)
    except RuntimeError as error:
        tags = timm.list_pretrained(name.partition(".")[0])
        raise UsageError(f"timm: {error}", f"published: {', '.join(tags) or 'none'}") from error
    config = module.pretrained_cfg
    checkpoint = checkpoints.read(weights) if weights not in (None, "random") else None
    outputs = _head_outputs(checkpoint, module, config)
    head: tuple[Caveat, ...] = ()
    if outputs is not None and classes is not None:
        raise InvalidInput(f"--classes names {len(classes.ids)} classes, but the head in {weights} has {outputs} "
                           "outputs", "one line per output in the --classes file")
    if outputs is not None:
        head = (Caveat(code="unnamed-classes", hint=f"pass --classes FILE with {outputs} lines, in the outputs' order",
                       message=f"{Path(weights or '').name} has a head of {outputs} outputs, where timm:{name} has "
                               f"{module.num_classes}: the head of the file is used, and its classes have no names"),)
        module = timm.create_model(name, pretrained=False, num_classes=outputs)
    identity, caveats = _with_weights(
        f"timm:{name}", module, weights,
        lambda: module.load_state_dict(_timm_pretrained(timm, name, config, overrides)),
        _timm_files(config), checkpoint)
    if classes is None and module.num_classes == 1000 and data.infer_imagenet_subset(module) in (None, "imagenet-1k"):
        classes = _imagenet_map()
    resolved = data.resolve_model_data_config(module)
    size = cast("tuple[int, int]", tuple(resolved["input_size"][1:]))
    module.eval()
    features = _has_plain_head(module, size)
    return Source(identity=identity, program=_with_features(module) if features else module, features=features,
                  at_size=lambda px: _timm_at(module, px, features=features), size_px=size, classes=classes,
                  caveats=(*caveats, *head), preprocess=preprocess or _timm_preprocess(resolved, size))


def _head_outputs(checkpoint: checkpoints.Checkpoint | None, module: Any, config: dict[str, Any]) -> int | None:
    classifier = config.get("classifier")
    return checkpoint.head_outputs(module, classifier) if checkpoint and isinstance(classifier, str) else None


def _has_plain_head(module: Any, size: tuple[int, int]) -> bool:
    """Return whether the logits are one linear layer on timm's pre-logits: only then are these what the head reads."""
    torch = require("torch", "export")
    if not isinstance(module.get_classifier(), torch.nn.Linear):
        return False
    with torch.inference_mode():
        image = torch.randn(1, 3, *size)
        features = module.forward_head(module.forward_features(image), pre_logits=True)
        return features.ndim == 2 and bool(torch.allclose(module.get_classifier()(features), module(image), atol=1e-4))


def _with_features(module: Any) -> Any:
    torch = require("torch", "export")

    class WithFeatures(torch.nn.Module):  # type: ignore[name-defined,misc]  # torch is imported at run time only
        """The classifier, with what its head reads as a second output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, image: Any) -> Any:
            features = self.network.forward_head(self.network.forward_features(image), pre_logits=True)
            return self.network.get_classifier()(features), features

    return WithFeatures().eval()


def _timm_at(module: Any, size_px: int, *, features: bool) -> Any:
    """Return the network for another input size: position embeddings are interpolated, the rest stays as it is."""
    if hasattr(module, "set_input_size"):
        module = copy.deepcopy(module)
        module.set_input_size(img_size=(size_px, size_px))
    return _with_features(module) if features else module


def _timm_preprocess(config: dict[str, Any], size: tuple[int, int]) -> Preprocess:
    mode = config["crop_mode"]
    if mode not in ("center", "squash"):
        raise InvalidInput(f"timm's crop mode {mode!r} is not supported; expected 'center' or 'squash'",
                           "pass --preprocess FILE")
    if size[0] != size[1]:
        raise InvalidInput(f"this model wants {size[1]}×{size[0]} pixels; only square inputs are known how to crop",
                           "pass --preprocess FILE")
    return Preprocess(size_px=size, mean=tuple(config["mean"]), std=tuple(config["std"]),
                      interpolation=config["interpolation"], resize="squash" if mode == "squash" else "shortest",
                      resize_px=math.floor(size[0] / config["crop_pct"]))


def _timm_files(config: dict[str, Any]) -> str:
    if config.get("hf_hub_id"):
        return f"model.safetensors of {config['hf_hub_id']} on the model hub"
    return str(config.get("url") or "")


def _timm_pretrained(timm: Any, name: str, config: dict[str, Any], overrides: dict[str, int]) -> dict[str, Any]:
    _refuse_unreachable(config.get("hf_hub_id"), ("model.safetensors", "pytorch_model.bin"))
    return cast("dict[str, Any]", timm.create_model(name, pretrained=True, **overrides).state_dict())


def _refuse_unreachable(repository: str | None, files: Sequence[str]) -> None:
    """Raise OSError at once where the hub cannot be reached: its client would retry for most of a minute."""
    hub = require("huggingface_hub", "export")
    if repository and any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in files):
        return
    if urllib.request.getproxies().get("https"):
        return
    if hub.constants.HF_HUB_OFFLINE:
        raise OSError("offline mode is set")
    host = urllib.parse.urlparse(hub.constants.ENDPOINT).hostname
    with socket.create_connection((host, 443), timeout=5):
        pass


def _with_weights(model: str, module: Any, weights: str | None, fetch: Callable[[], object], files: str,
                  checkpoint: checkpoints.Checkpoint | None = None) -> tuple[ModelIdentity, tuple[Caveat, ...]]:
    if weights == "random":
        return ModelIdentity(id=model, weights="random", weights_sha256=None), ()
    if weights is not None:
        digest, caveats = (checkpoint or checkpoints.read(weights)).load(module)
        return ModelIdentity(id=model, weights="file", weights_sha256=digest), caveats
    if not files:
        raise InvalidInput(f"{model} has no published weights", "pass --weights FILE, or --weights random for latency")
    try:
        with quiet():
            fetch()
    except (OSError, RuntimeError) as error:
        raise InvalidInput(
            f"the weights of {model} are not here and cannot be fetched: {' '.join(str(error).split())[:200]}",
            f"fetch {files} elsewhere and pass it with --weights FILE; --weights random measures latency without them",
        ) from error
    return ModelIdentity(id=model, weights="pretrained", weights_sha256=_hash_state(module)), ()


def _hash_state(module: Any) -> str:
    state = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        state.update(name.encode())
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries' notes about themselves off the terminal; their errors still raise."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _open_clip(name: str, weights: str | None, classes: ClassMap | None, templates: Sequence[str] | None,
               preprocess: Preprocess | None, progress: Progress) -> Source:
    torch = require("torch", "export")
    clip = require("open_clip", "export")
    arch, _, tag = name.partition("/")
    if arch not in clip.list_models():
        raise unknown("open_clip model", arch, clip.list_models(), "open_clip.list_models() lists them")
    if tag and tag not in clip.list_pretrained_tags_by_model(arch):
        raise unknown(f"tag of open_clip:{arch}", tag, clip.list_pretrained_tags_by_model(arch))
    if not tag and weights is None:
        raise UsageError(f"open_clip:{arch} needs a tag: open_clip:ARCH/TAG",
                         f"tags: {', '.join(clip.list_pretrained_tags_by_model(arch)) or 'none are published'}")
    torch.manual_seed(0)
    config = clip.get_pretrained_cfg(arch, tag) if tag else {}
    # Naming the tag here would fetch its weights at once; what else the tag decides is handed over one by one.
    decided = {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}
    with quiet():
        model = clip.create_model(arch, pretrained=None, force_quick_gelu=config.get("quick_gelu", False),
                                  force_preprocess_cfg=decided)

    def fetch() -> None:
        repository = str(config.get("hf_hub", "")).rstrip("/")
        _refuse_unreachable(repository, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
        clip.load_checkpoint(model, clip.download_pretrained(config, prefer_hf_hub=True), weights_only=True)

    where = f"open_clip_model.safetensors of {config['hf_hub'].rstrip('/')} on the model hub" \
        if config.get("hf_hub") else str(config.get("url", ""))
    identity, caveats = _with_weights(f"open_clip:{name}", model, weights, fetch, where)
    model.eval()
    own = clip.get_model_preprocess_cfg(model)
    size = own["size"] if isinstance(own["size"], tuple | list) else (own["size"], own["size"])
    if preprocess is None and own.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise InvalidInput(f"open_clip's resize mode {own['resize_mode']!r} is not supported", "pass --preprocess FILE")
    squash = own.get("resize_mode") == "squash"
    if classes is None:
        classes = ClassMap(ids=imagenet_wnids(), names=tuple(clip.IMAGENET_CLASSNAMES))
    prompts = list(templates) if templates else [template("{}") for template in clip.OPENAI_IMAGENET_TEMPLATES]
    head = _random_head(model, classes) if identity.weights == "random" else \
        _text_head(model, clip.get_tokenizer(arch), identity, classes, prompts, progress)
    identity = replace(identity, head_sha256=hashlib.sha256(head.numpy().tobytes()).hexdigest())
    return Source(
        identity=identity, program=_zero_shot(model.visual, head), features=True,
        at_size=lambda px: _zero_shot(_tower_at(model.visual, px), head), size_px=(int(size[0]), int(size[1])),
        classes=classes, caveats=caveats,
        preprocess=preprocess or Preprocess(
            size_px=(int(size[0]), int(size[1])), mean=tuple(own["mean"]), std=tuple(own["std"]),
            interpolation=own.get("interpolation", "bicubic"), resize="squash" if squash else "shortest",
            resize_px=None if squash else int(min(size))))


def _zero_shot(tower: Any, head: Any) -> Any:
    torch = require("torch", "export")

    class ZeroShot(torch.nn.Module):  # type: ignore[name-defined,misc]  # torch is imported at run time only
        """Image tower, L2 normalisation, product with the scaled text embeddings: logits (N, classes); embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = tower
            self.register_buffer("head", ZERO_SHOT_SCALE * head)

        def forward(self, image: Any) -> Any:
            embedding = self.tower(image)
            return torch.nn.functional.normalize(embedding, dim=-1) @ self.head, embedding

    return ZeroShot().eval()


def _tower_at(tower: Any, size_px: int) -> Any:
    """Return the image tower for another input size; position embeddings are interpolated as the paper's code does."""
    torch = require("torch", "export")
    tower = copy.deepcopy(tower)
    if hasattr(tower, "trunk"):
        if hasattr(tower.trunk, "set_input_size"):
            tower.trunk.set_input_size(img_size=(size_px, size_px))
        return tower
    if getattr(tower, "positional_embedding", None) is None:
        return tower
    patch = tower.conv1.kernel_size[0]
    embedding = tower.positional_embedding.detach()
    side, extra = math.isqrt(len(embedding)), len(embedding) - math.isqrt(len(embedding)) ** 2
    grid = embedding[extra:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    to = size_px // patch
    grid = torch.nn.functional.interpolate(grid, size=(to, to), mode="bicubic", antialias=True, align_corners=False)
    whole = torch.cat([embedding[:extra], grid.permute(0, 2, 3, 1).reshape(to * to, -1)])
    tower.positional_embedding = torch.nn.Parameter(whole)
    return tower


def _random_head(model: Any, classes: ClassMap) -> Any:
    torch = require("torch", "export")
    width = int(model.text_projection.shape[1]) if getattr(model, "text_projection", None) is not None \
        else int(model.visual.output_dim)
    return torch.nn.functional.normalize(torch.randn(width, len(classes.ids)), dim=0)


def _text_head(model: Any, tokenizer: Any, identity: ModelIdentity, classes: ClassMap, prompts: Sequence[str],
               progress: Progress, chunk: int = 10) -> Any:
    """Return the text embeddings (width, classes): mean of the normalised prompts, normalised; kept on disk.

    A thousand classes take over an hour on two cores: every chunk is saved, so that an interrupted run goes on.
    """
    torch = require("torch", "export")
    parts = json.dumps([identity.id, identity.weights_sha256, list(classes.names), list(prompts)])
    file = cache_root() / "heads" / f"{hashlib.sha256(parts.encode()).hexdigest()[:32]}.npz"
    kept = arrays.load_cache(file, ("head",))
    done: list[Any] = [] if kept is None else list(torch.from_numpy(kept["head"]))
    with torch.inference_mode():
        for start in range(len(done), len(classes.names), chunk):
            names = classes.names[start:start + chunk]
            texts = [prompt.format(name) for name in names for prompt in prompts]
            embedded = model.encode_text(tokenizer(texts), normalize=True).reshape(len(names), len(prompts), -1)
            done.extend(torch.nn.functional.normalize(embedded.mean(dim=1), dim=-1))
            arrays.save_cache(file, {"head": torch.stack(done).numpy()}, CACHE_HINT)
            progress("encoding class names", len(done), len(classes.names))
    return torch.stack(done).T.contiguous()


def _onnx_file(path: Path, weights: str | None, classes: ClassMap | None) -> Source:
    if weights not in (None, "random"):
        raise UsageError("an ONNX file brings its own weights: leave --weights away")
    graphs.refuse_unreadable(path)
    kind: Literal["random", "embedded"] = "random" if weights == "random" else "embedded"
    state = hashlib.sha256(sha256_file(path).encode())
    for data in graphs.external_data(path):
        if data.is_file():
            state.update(sha256_file(data).encode())
    return Source(identity=ModelIdentity(id=path.name, weights=kind, weights_sha256=state.hexdigest()), program=None,
                  onnx=path, file=path, size_px=None, preprocess=None, classes=classes,
                  written=graphs.written_precision(graphs.load(path)))


def _exported_program(path: Path, weights: str | None, classes: ClassMap | None) -> Source:
    if weights not in (None, "random"):
        raise UsageError("an exported program brings its own weights: leave --weights away")
    what = "an exported program (.pt2)"
    refuse_unreadable(path, what, missing=UsageError)
    refuse_stand_in(path, what)
    program = _loaded_program(path)
    image = _program_image(path, program)
    _refuse_training_mode(path, program)
    size = (int(image.shape[2]), int(image.shape[3]))
    kind: Literal["random", "embedded"] = "random" if weights == "random" else "embedded"
    return Source(identity=ModelIdentity(id=path.name, weights=kind, weights_sha256=sha256_file(path)),
                  program=program, file=path, size_px=size, preprocess=None, classes=classes)


def _loaded_program(path: Path) -> Any:
    torch = require("torch", "export")
    hint = "save it with torch.export.save(torch.export.export(...), FILE)"
    if not zipfile.is_zipfile(path):
        raise InvalidInput(f"{path} does not load as an exported program: it is cut short or of another format",
                           f"copy or download it again; {hint}")
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] or name for name in archive.namelist()]
    if "constants.pkl" in names:
        raise InvalidInput(f"{path} is a TorchScript archive; expected an exported program", hint)
    if "data.pkl" in names and not any(name.startswith("models/") for name in names):
        raise InvalidInput(f"{path} is a file of torch.save; expected an exported program",
                           f"pass a state dict with --weights FILE; {hint}")
    try:
        with quiet():
            program = torch.export.load(path)
            if any(value.device.type != "cpu" for value in program.state_dict.values()):
                program = require("torch.export.passes", "export").move_to_device_pass(program, "cpu")
    except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError, OSError, AssertionError, TypeError,
            AttributeError, EOFError, zipfile.BadZipFile) as error:
        on_gpu = "cuda" in str(error).lower()
        raise InvalidInput(
            f"{path} does not load as an exported program in PyTorch {torch.__version__}: " + (
                "it was saved on a GPU" if on_gpu else "it is damaged or was saved by another version"),
            "move the model to the CPU before torch.export.export" if on_gpu else
            f"export it again with this version; {hint}") from error
    return program


def _program_image(path: Path, program: Any) -> Any:
    """Return the one image input of an exported program, as its graph describes it."""
    torch = require("torch", "export")
    inputs = [node.meta["val"] for node in program.graph.nodes
              if node.op == "placeholder" and node.name in program.graph_signature.user_inputs]
    tensors = [value for value in inputs if torch.is_tensor(value)]
    shapes = ", ".join(f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"
                       for value in tensors)
    expected = f"{path}: expected one float32 image input (N, 3, H, W), got {shapes or 'none'}"
    if len(tensors) != 1:
        raise InvalidInput(expected, "make the other inputs constants of the model before exporting it")
    image = tensors[0]
    if image.ndim != 4 or image.shape[1] != 3:
        last = image.ndim == 4 and image.shape[3] in (1, 3, 4)
        raise InvalidInput(expected, "the input is channels-last: call permute(0, 3, 1, 2) on the caller's side of the "
                           "export" if last else "export an image classifier for RGB images")
    if image.dtype != torch.float32:
        raise InvalidInput(expected, "export the model in float32: model.float() before torch.export.export")
    if any(isinstance(size, torch.SymInt) for size in image.shape[2:]):
        raise InvalidInput(f"{path}: height and width of its input may vary", "export it for one size of input")
    return image


def _refuse_training_mode(path: Path, program: Any) -> None:
    # Place of the argument that says whether the operator trains.
    places = {"aten.batch_norm": 5, "aten.native_batch_norm": 5, "aten.dropout": 2, "aten.native_dropout": 2,
              "aten.alpha_dropout": 2, "aten.feature_dropout": 2, "aten._native_batch_norm_legit": 5}
    for node in program.graph.nodes:
        name = str(node.target).rpartition(".")[0]
        place = places.get(name)
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise InvalidInput(f"{path} was exported in training mode: {name.removeprefix('aten.')} trains, so that "
                               "answers depend on the batch or on chance",
                               "call model.eval() before torch.export.export")
