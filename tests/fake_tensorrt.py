"""TensorRT without a GPU, in the dialects of 10.3, 10.16, 11 and RTX: what this project calls, and nothing else.

It parses ONNX files with onnx, builds plans that hold them, and runs them with ONNX Runtime on the memory of a
`tests.fake_cuda.FakeCuda`. Names that a dialect lacks are lacking: touching one is an AttributeError.
"""

from __future__ import annotations

import enum
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from edgebench.backends.cuda import view
from tests.fake_cuda import FakeCuda

KINDS = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 17: "FP8", 6: "INT32", 7: "INT64"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}
SENTENCES = {"FLOAT": "Row major linear FP32", "HALF": "Channel major FP16 format where channel % 8 == 0",
             "INT8": "Thirty-two wide channel vectorized row major Int8 format", "BF16": "Row major linear BF16"}
WORDS = {"FLOAT": "Float", "HALF": "Half", "INT8": "Int8", "BF16": "BFloat16", "FP8": "FP8"}
LAYERS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "QuantizeLinear": "QUANTIZE",
          "DequantizeLinear": "DEQUANTIZE"}
_salt = itertools.count()


def members(name: str, *names: str):
    return enum.Enum(name, {one: k for k, one in enumerate(names)})


class Dims(tuple):
    __slots__ = ()


def library(version: str, cuda: FakeCuda, *, flavour: str = "tensorrt", dla_cores: int = 0, verbose_types: bool = True,
            fail_build: str = "", capture: str = "works", compatible: tuple[str, ...] = ("NONE", "AMPERE_PLUS")):
    """Return what ``import tensorrt`` would give.

    Args:
        version: As the library tells it.
        cuda: Whose memory engines run on.
        flavour: Which library.
        dla_cores: Of the board.
        verbose_types: Whether the inspector of 10 tells types in sentences.
        fail_build: What the builder says, where it is to fail.
        capture: ``works``, ``refuses`` (enqueue returns False while a graph is captured).
        compatible: Hardware compatibility levels that this version knows.
    """
    eleven = int(version.split(".")[0]) >= 11
    flags = ["GPU_FALLBACK", "TF32", "VERSION_COMPATIBLE"]
    if not eleven and flavour == "tensorrt":
        flags += ["FP16", "BF16", "INT8", "FP8"]
    made = SimpleNamespace(
        __version__=version, Dims=Dims, BuilderFlag=members("BuilderFlag", *flags),
        HardwareCompatibilityLevel=members("HardwareCompatibilityLevel", *compatible),
        ProfilingVerbosity=members("ProfilingVerbosity", "LAYER_NAMES_ONLY", "DETAILED", "NONE"),
        MemoryPoolType=members("MemoryPoolType", "WORKSPACE"), DeviceType=members("DeviceType", "GPU", "DLA"),
        LayerInformationFormat=members("LayerInformationFormat", "ONELINE", "JSON"),
        NetworkDefinitionCreationFlag=enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}),
        ILogger=object, IProfiler=object, said=[], builds=0, flavour=flavour, eleven=eleven, cuda=cuda, capture=capture,
        verbose_types=verbose_types, fail_build=fail_build, dla_cores=dla_cores)
    made.Builder = lambda logger: Builder(made, logger)
    made.Runtime = lambda logger: Runtime(made, logger)
    made.OnnxParser = lambda network, logger: Parser(network)
    if eleven:
        made.EngineStat = members("EngineStat", "TOTAL_WEIGHTS_SIZE", "STRIPPED_WEIGHTS_SIZE")
    if flavour == "tensorrt_rtx":
        made.ComputeCapability = enum.Enum("ComputeCapability", {"NONE": 0, "CURRENT": 1, "SM80": 80, "SM86": 86, "SM89": 89})
        made.DynamicShapesKernelSpecializationStrategy = members("DynamicShapesKernelSpecializationStrategy", "LAZY", "EAGER")
    return made


class Builder:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger
        self.num_DLA_cores = trt.dla_cores

    def create_network(self, flags: int = 0):
        return Network(self.trt, strong=self.trt.eleven or self.trt.flavour == "tensorrt_rtx" or bool(flags & 2))

    def create_builder_config(self):
        return Config(self.trt)

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        self.trt.builds += 1
        if self.trt.fail_build:
            self.logger.log(SimpleNamespace(name="ERROR"), self.trt.fail_build)
            return None
        assert config.profiling_verbosity.name == "DETAILED"
        assert not config.get_flag(self.trt.BuilderFlag.TF32)
        # Like the real one, no two builds are alike.
        plan = {"salt": next(_salt), "strong": network.strong, "flags": sorted(flag.name for flag in config.flags),
                "profile": config.profile.shapes if config.profile else {}, "dla": config.default_device_type.name,
                "onnx": network.model.SerializeToString().hex()}
        if config.timings is not None:
            config.timings.content += f"timed {network.model.graph.name};".encode()
        return json.dumps(plan).encode()


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, usual, high):
        assert all(isinstance(one, Dims) for one in (low, usual, high))
        self.shapes[name] = [list(low), list(usual), list(high)]


class Timings:
    def __init__(self, content: bytes):
        self.content = content

    def serialize(self):
        return self.content


class Config:
    def __init__(self, trt):
        self._trt = trt
        self.flags = {trt.BuilderFlag.TF32}
        self.profile, self.timings, self.limits = None, None, {}
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.default_device_type = trt.DeviceType.GPU

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def get_flag(self, flag):
        return flag in self.flags

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool.name] = size

    def create_timing_cache(self, content):
        return Timings(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timings = cache
        return True

    def get_timing_cache(self):
        return self.timings

    def can_run_on_DLA(self, layer):  # noqa: N802  # TensorRT calls it so
        return layer.type.name == "CONVOLUTION"

    def set_compute_capability(self, capability, index):
        assert index < self.num_compute_capabilities
        return True


class Network:
    def __init__(self, trt, *, strong):
        self.trt, self.strong, self.model, self._layers = trt, strong, None, []

    @property
    def num_layers(self):
        return len(self._layers)

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    def get_layer(self, k):
        return self._layers[k]

    def get_input(self, k):
        value = self.model.graph.input[k]
        return SimpleNamespace(name=value.name, shape=dims(value))


def dims(value):
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


class Layer:
    def __init__(self, node, types):
        self.node = node
        self.type = SimpleNamespace(name=LAYERS.get(node.op_type, "ELEMENTWISE"))
        self._types = types

    def _tensor(self, name):
        return SimpleNamespace(name=name, dtype=SimpleNamespace(name=self._types.get(name, "FLOAT")))

    def get_input(self, k):
        return self._tensor(self.node.input[k])

    def get_output(self, k):
        return self._tensor(self.node.output[k])


def tensor_types(model):
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: KINDS.get(value.type.tensor_type.elem_type, "FLOAT")
             for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    return types | {tensor.name: KINDS.get(tensor.data_type, "FLOAT") for tensor in inferred.initializer}


class Parser:
    def __init__(self, network):
        self._network, self._errors = network, []

    def parse_from_file(self, path: str) -> bool:
        model = onnx.load(path)
        types = tensor_types(model)
        for number, node in enumerate(model.graph.node):
            if node.op_type == "DequantizeLinear" and types[node.input[0]] == "INT32":
                self._errors.append(SimpleNamespace(
                    desc=lambda: "Invalid Node: input has type Int32 but must have type Int8", node=lambda n=number: n,
                    node_name=lambda name=node.name: name, node_operator=lambda op=node.op_type: op))
        self._network.model = model
        self._network._layers = [Layer(node, types) for node in model.graph.node]
        return not self._errors

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, k):
        return self._errors[k]


class Runtime:
    def __init__(self, trt, logger):
        self.trt, self.logger, self.engine_host_code_allowed = trt, logger, False

    def deserialize_cuda_engine(self, plan: bytes):
        try:
            return Engine(self.trt, json.loads(plan), trusted=self.engine_host_code_allowed)
        except ValueError:
            self.logger.log(SimpleNamespace(name="ERROR"), "Serialization assertion stdVersionRead == kVERSION failed")
            return None


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, trt, plan, *, trusted):
        if "VERSION_COMPATIBLE" in plan["flags"] and not trusted:
            raise AssertionError("a version-compatible plan was loaded without saying that its code is trusted")
        self.trt, self.plan = trt, plan
        self.model = onnx.load_from_string(bytes.fromhex(plan["onnx"]))
        self.session = onnxruntime.InferenceSession(bytes.fromhex(plan["onnx"]), providers=["CPUExecutionProvider"])
        self._io = [*((value, "INPUT") for value in self.model.graph.input),
                    *((value, "OUTPUT") for value in self.model.graph.output)]
        self.num_io_tensors = len(self._io)

    def get_engine_stat(self, stat):
        assert self.trt.EngineStat.TOTAL_WEIGHTS_SIZE is stat
        return 54_321

    def _find(self, name):
        return next((value, mode) for value, mode in self._io if value.name == name)

    def get_tensor_name(self, k):
        return self._io[k][0].name

    def get_tensor_mode(self, name):
        return SimpleNamespace(name=self._find(name)[1])

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=KINDS[self._find(name)[0].type.tensor_type.elem_type])

    def get_tensor_shape(self, name):
        return Dims(dims(self._find(name)[0]))

    def get_tensor_profile_shape(self, name, profile):
        return [Dims(one) for one in self.plan["profile"][name]]

    def create_execution_context(self, settings=None):
        return Context(self)

    def create_runtime_config(self):
        cache = SimpleNamespace(content=b"", deserialize=lambda content: True, serialize=lambda: b"compiled")
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda one: True)

    def create_engine_inspector(self):
        return Inspector(self)

    def layers(self):
        """Compute nodes and the rest, with the type that each multiplies."""
        types = tensor_types(self.model)
        stored = {node.output[0]: types[node.input[0]] for node in self.model.graph.node if node.op_type == "DequantizeLinear"}
        for node in self.model.graph.node:
            kind = types.get(node.input[0], "FLOAT")
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                kind = stored.get(node.input[0], kind)
                if not self.plan["strong"] and kind == "FLOAT":
                    kind = next((to for flag, to in (("FP16", "HALF"), ("BF16", "BF16")) if flag in self.plan["flags"]), kind)
                yield node, kind, {"Conv": "CaskConvolution"}.get(node.op_type, "gemm")
            elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                yield node, kind, "kgen"


class Context:
    def __init__(self, engine):
        self.engine, self._shapes, self._addresses = engine, {}, {}
        self.profiler, self.enqueue_emits_profile, self.runs = None, True, 0

    def set_input_shape(self, name, shape):
        profile = self.engine.plan["profile"].get(name)
        if profile and not all(low <= size <= high for low, size, high in zip(profile[0], shape, profile[2], strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return []

    def get_tensor_shape(self, name):
        if name in self._shapes:
            return Dims(self._shapes[name])
        batch = next(iter(self._shapes.values()))[0]
        return Dims((batch, *self.engine.get_tensor_shape(name)[1:]))

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, number):
        cuda = self.engine.trt.cuda
        stream = cuda.stream_of(number)
        if stream.capturing is not None and self.engine.trt.capture == "refuses":
            return False
        cuda.enqueue(stream, self._compute)
        return True

    def _compute(self):
        def array(name):
            kind = self.engine.get_tensor_dtype(name).name
            return view(self._addresses[name], tuple(self.get_tensor_shape(name)), NUMPY[kind])

        self.runs += 1
        names = [value.name for value in self.engine.model.graph.output]
        outputs = self.engine.session.run(names, {value.name: np.array(array(value.name)) for value in self.engine.model.graph.input})
        for name, value in zip(names, outputs, strict=True):
            np.copyto(array(name), value)

    def report_to_profiler(self):
        for k, (node, _, _) in enumerate(self.engine.layers()):
            self.profiler.report_layer_time(node.name, 1.0 + k)


class Inspector:
    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, form):
        trt = self._engine.trt
        assert form.name == "JSON"

        def tensor(name, kind):
            if trt.eleven:
                return {"Name": name, "Dimensions": [1], "Format": SENTENCES.get(kind, kind), "DataType": WORDS.get(kind, kind)}
            return {"Name": name, "Dimensions": [1], "Format/Datatype": (SENTENCES if trt.verbose_types else WORDS).get(kind, kind)}

        rows = [{"Name": node.name, "LayerType": "DLA" if self._engine.plan["dla"] == "DLA" and kind_of == "CaskConvolution" else kind_of,
                 "Inputs": [tensor(node.input[0], kind)], "Outputs": [tensor(node.output[0], kind)],
                 "TacticName": "", "Metadata": f"[ONNX Layer: {node.name}]"} for node, kind, kind_of in self._engine.layers()]
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        io = {"I/O Tensors": [{"Name": name} for name in names]} if trt.eleven else {"Bindings": names}
        return json.dumps({"Layers": rows, **io})


def onnx_text(path: Path) -> str:
    return re.sub(r"\s+", " ", onnx.printer.to_text(onnx.load(str(path))))
