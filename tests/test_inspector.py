"""What an engine's inspector tells, in the forms that NVIDIA documents for TensorRT 8 to 11, with the profiler's times.

The rows have the shape of NVIDIA's published examples: "Engine Inspector" (10.16), "Migrating IEngineInspector Usage from
TensorRT 10.x to 11.x" (11.3), and build logs of fused and DLA layers.
"""

from __future__ import annotations

import json

import pytest

from edgebench.backends import inspector
from edgebench.errors import CannotMeasure

CONV_8 = {
    "Name": "res4_branch2a + res4_branch2a_bn + relu", "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Dimensions": [16, 512, 28, 28],
                "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
    "Outputs": [{"Name": "y", "Dimensions": [16, 256, 28, 28],
                 "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
    "ParameterType": "Convolution", "Weights": {"Type": "Int8", "Count": 131072}, "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32",
    "Metadata": "[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_relu]"}
GEMM_HALF = {
    "Name": "/blocks.0/mlp/fc1/MatMul_myl0_7", "LayerType": "gemm",
    "Inputs": [{"Name": "a", "Format/Datatype": "Half"}, {"Name": "b", "Format/Datatype": "Half"}],
    "Outputs": [{"Name": "c", "Format/Datatype": "Half"}], "TacticName": "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize64x64x64",
    "Metadata": "[ONNX Layer: /blocks.0/mlp/fc1/MatMul]"}
FUSED_POINTWISE = {
    "Name": "__myl_CastMulAdd_myl0_8", "LayerType": "kgen", "Inputs": [{"Name": "c", "Format/Datatype": "Half"}],
    "Outputs": [{"Name": "d", "Format/Datatype": "Float"}], "TacticName": "__myl_CastMulAdd_0x1234",
    "Metadata": "[ONNX Layer: /blocks.0/norm2/Mul]\x1e[ONNX Layer: /blocks.0/norm2/Add]"}
REFORMAT = {"Name": "Reformatting CopyNode for Input Tensor 0 to conv1", "LayerType": "Reformat",
            "Inputs": [{"Name": "image", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "r", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}], "TacticName": ""}
CONV_11 = {"Name": "conv1", "LayerType": "CaskConvolution",
           "Inputs": [{"Name": "image", "Dimensions": [1, 3, 224, 224], "Format": "Row major linear format (kLINEAR)", "DataType": "Float"}],
           "Outputs": [{"Name": "c", "Dimensions": [1, 8, 224, 224], "Format": "Row major linear format (kLINEAR)", "DataType": "Float"}],
           "TacticName": "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x64x16"}
DLA = {"Name": "{ForeignNode[conv1 + relu1...pool5]}", "LayerType": "DLA", "Inputs": [{"Name": "x", "Format/Datatype": "DLA linear FP16 format"}],
       "Outputs": [{"Name": "y", "Format/Datatype": "DLA linear FP16 format"}], "TacticName": ""}
MYELIN = {"Name": "{ForeignNode[ln1...softmax]}", "LayerType": "Myelin", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}],
          "Outputs": [{"Name": "y", "Format/Datatype": "Half"}], "TacticName": ""}


def engine(*layers, eleven: bool = False) -> str:
    io = {"I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 224, 224]}]} if eleven \
        else {"Bindings": ["image", "logits"]}
    return json.dumps({"Layers": list(layers), **io})


class TestLayers:
    @pytest.mark.parametrize(("row", "precision", "compute"), [
        (CONV_8, "int8", True), (GEMM_HALF, "fp16", True), (FUSED_POINTWISE, "fp16", False), (REFORMAT, "fp32", False),
        (CONV_11, "fp32", True), (DLA, "fp16", True), (MYELIN, "fp16", False)])
    def test_precision_and_kind_of_documented_rows(self, row, precision, compute):
        (layer,) = inspector.parse(engine(row))
        assert (precision, compute) == (layer.precision, layer.compute)

    @pytest.mark.parametrize(("text", "precision"), [
        ("Float", "fp32"), ("Half", "fp16"), ("Int8", "int8"), ("BFloat16", "bf16"), ("BF16", "bf16"), ("FP8", "fp8"),
        ("Row major linear FP32", "fp32"), ("Channel major FP16 format where channel % 4 == 0", "fp16"),
        ("Two wide channel vectorized row major FP16 format", "fp16"), ("Row major Int8 format", "int8"),
        ("Int32", "int32"), ("Bool", "bool"), ("Sixteen wide channel vectorized row major FP8 format", "fp8"), ("", "unknown")])
    def test_types_in_words_and_sentences(self, text, precision):
        row = {"Name": "n", "LayerType": "Convolution", "Inputs": [{"Format/Datatype": text}], "Outputs": []}
        assert precision == inspector.parse(engine(row))[0].precision

    @pytest.mark.parametrize(("tactic", "precision"), [
        ("sm80_xmma_gemm_i8f32_i8i32_f32_by_fusion_tactic", "int8"), ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "fp8"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_nn_n", "bf16"), ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n", "fp32"),
        ("sm75_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "fp16")])
    def test_the_kernels_name_decides_over_what_it_reads_and_writes(self, tactic, precision):
        row = {"Name": "n", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Half"}],
               "TacticName": tactic}
        assert precision == inspector.parse(engine(row))[0].precision

    def test_an_int8_product_with_a_half_precision_residual_is_int8(self):
        row = {"Name": "n", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Half"}], "TacticName": "opaque",
               "Inputs": [{"Format/Datatype": "Half"}, {"Format/Datatype": "Int8"}]}
        assert "int8" == inspector.parse(engine(row))[0].precision

    def test_onnx_nodes_come_from_the_metadata_whatever_parts_them(self):
        layers = inspector.parse(engine(CONV_8, FUSED_POINTWISE, REFORMAT))
        assert ("node_conv2d", "node_relu") == layers[0].nodes
        assert ("/blocks.0/norm2/Mul", "/blocks.0/norm2/Add") == layers[1].nodes
        assert () == layers[2].nodes

    def test_version_11s_schema_is_read_alike(self):
        split = {**GEMM_HALF, "Inputs": [{"Name": "a", "Format": "LINEAR", "DataType": "Half"}],
                 "Outputs": [{"Name": "c", "Format": "LINEAR", "Datatype": "Half"}], "TacticName": "opaque"}
        assert "fp16" == inspector.parse(engine(split, eleven=True))[0].precision

    def test_only_dla_layers_run_on_the_dla(self):
        assert ["DLA", "GPU", "GPU"] == [layer.device for layer in inspector.parse(engine(DLA, MYELIN, CONV_8))]

    def test_names_without_types_prove_nothing(self):
        with pytest.raises(CannotMeasure, match="names of its 2 layers but not their types"):
            inspector.parse(json.dumps({"Layers": ["conv1 + relu1", "fc"], "Bindings": ["x"]}))

    @pytest.mark.parametrize("text", ["not json", "[]", "{}", '{"Layers": []}', '{"Layers": null}'])
    def test_what_is_no_description_of_an_engine_is_refused(self, text):
        with pytest.raises(CannotMeasure, match="inspector"):
            inspector.parse(text)


class TestExecuted:
    def test_shares_of_time_and_layers(self):
        layers = inspector.parse(engine(CONV_8, GEMM_HALF, FUSED_POINTWISE, REFORMAT))
        times = {CONV_8["Name"]: 6e-4, GEMM_HALF["Name"]: 2e-4, FUSED_POINTWISE["Name"]: 1e-4, REFORMAT["Name"]: 1e-4}
        found = inspector.executed("int8", layers, times, "evidence")
        assert found.achieved
        assert {"int8": pytest.approx(0.6), "fp16": pytest.approx(0.3), "fp32": pytest.approx(0.1)} == found.time_share
        assert {"int8": 1, "fp16": 2, "fp32": 1} == found.layers
        assert {"int8": 1, "fp16": 1} == found.compute_layers
        assert {"GPU": 4} == found.placement

    def test_time_decides_over_count(self):
        other = {**GEMM_HALF, "Name": "second"}
        layers = inspector.parse(engine(CONV_8, GEMM_HALF, other))
        slow_int8 = {CONV_8["Name"]: 9e-4, GEMM_HALF["Name"]: 1e-4, "second": 1e-4}
        assert "int8" == inspector.executed("int8", layers, slow_int8, "").executed
        assert "fp16" == inspector.executed("int8", layers, {}, "").executed

    def test_without_times_there_are_no_shares_of_time(self):
        assert {} == inspector.executed("int8", inspector.parse(engine(CONV_8)), {}, "").time_share

    def test_time_of_layers_that_the_inspector_does_not_know_is_counted_as_unknown(self):
        found = inspector.executed("int8", inspector.parse(engine(CONV_8)), {CONV_8["Name"]: 3e-4, "copy": 1e-4}, "")
        assert {"int8": pytest.approx(0.75), "unknown": pytest.approx(0.25)} == found.time_share

    def test_the_profile_holds_every_layer_and_what_the_inspector_does_not_know(self):
        found = inspector.executed("int8", inspector.parse(engine(CONV_8, REFORMAT)),
                                   {CONV_8["Name"]: 6e-4, REFORMAT["Name"]: 2e-4, "copy": 2e-4}, "").profile
        assert [(CONV_8["Name"], "int8", 0.6), (REFORMAT["Name"], "fp32", 0.2), ("copy", "unknown", 0.2)] == [
            (one.name, one.precision, pytest.approx(one.share)) for one in found]
        assert [CONV_8["LayerType"], REFORMAT["LayerType"], "unknown"] == [one.type for one in found]

    def test_without_times_there_is_no_profile(self):
        assert () == inspector.executed("int8", inspector.parse(engine(CONV_8)), {}, "").profile

    def test_an_fp32_engine_does_not_pass_for_fp16(self):
        found = inspector.executed("fp16", inspector.parse(engine(CONV_11, eleven=True)), {}, "")
        assert ("fp32", False) == (found.executed, found.achieved)

    def test_kernels_that_round_to_tf32_are_told(self):
        found = inspector.executed("fp32", inspector.parse(engine(CONV_11, eleven=True)), {}, "read")
        assert "1 kernels round FP32 operands to TF32" in found.evidence

    def test_placement_counts_devices(self):
        assert {"DLA": 1, "GPU": 2} == inspector.executed("fp16", inspector.parse(engine(DLA, MYELIN, REFORMAT)), {}, "").placement

    def test_an_engine_without_a_single_product_proves_nothing(self):
        with pytest.raises(CannotMeasure, match="none of the engine's 1 layers"):
            inspector.executed("fp16", inspector.parse(engine(REFORMAT)), {}, "")

    def test_slowest_layers_come_first_with_their_share(self):
        layers = inspector.parse(engine(REFORMAT, CONV_8))
        ranked = inspector.slowest(layers, {CONV_8["Name"]: 3e-4, REFORMAT["Name"]: 1e-4})
        assert [(CONV_8["Name"], pytest.approx(0.75)), (REFORMAT["Name"], pytest.approx(0.25))] == [(one.name, share) for one, share in ranked]
