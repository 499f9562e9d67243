"""What hangs, grows or is stopped from outside ends with one clear error, and everything else goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from edgebench import child, environment, worker
from edgebench.backends import onnxruntime
from edgebench.conversion import PLAIN
from edgebench.errors import Unending
from edgebench.record import load
from tests.commands import TIME_LIMIT_S, cli, interrupt
from tests.conftest import picture
from tests.models import CLASSES, class_file, onnx_file, preprocess_file


def looping(path: Path, *, grows: bool = False) -> Path:
    """Write a classifier whose graph holds a Loop without an end, which may also take more and more memory."""
    kind = onnx.TensorProto
    step = oh.make_node("Concat", ["v", "v"], ["v2"], axis=0) if grows else oh.make_node("Identity", ["v"], ["v2"])
    body = oh.make_graph(
        [oh.make_node("Identity", ["go"], ["go2"]), step], "body",
        [oh.make_tensor_value_info("k", kind.INT64, []), oh.make_tensor_value_info("go", kind.BOOL, []),
         oh.make_tensor_value_info("v", kind.FLOAT, ["m", 3])],
        [oh.make_tensor_value_info("go2", kind.BOOL, []), oh.make_tensor_value_info("v2", kind.FLOAT, ["k", 3])])
    graph = oh.make_graph(
        [oh.make_node("ReduceMean", ["image", "axes"], ["pooled"], keepdims=0),
         oh.make_node("Loop", ["", "go", "pooled"], ["logits"], body=body)], "g",
        [oh.make_tensor_value_info("image", kind.FLOAT, ["n", 3, 8, 8])],
        [oh.make_tensor_value_info("logits", kind.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(np.array([2, 3]), "axes"), onnx.numpy_helper.from_array(np.array(True), "go")])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), str(path))
    return path


@pytest.fixture
def words(tmp_path: Path) -> list[str | Path]:
    for k, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            picture(10 * k + number, 12, 12).save(tmp_path / "data" / name / f"{number}.png")
    return ["--preprocess", preprocess_file(tmp_path), "--classes", class_file(tmp_path), "--data", tmp_path / "data",
            "--budget", "smoke", "--properties", "accuracy", "--out", tmp_path / "out"]


def test_an_endless_loop_in_a_graph_is_one_error_and_the_other_models_go_on(words, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "FIRST_INFERENCE_LIMIT_S", 10.0)
    done = cli("profile", looping(tmp_path / "endless.onnx"), onnx_file(tmp_path / "good.onnx"), "--recipe", "ort-fp32", *words)
    assert 3 == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if "10 s" in line)
    assert "endless.onnx" in line
    assert ["good.onnx"] == [load(file).artifact.model.id for file in (tmp_path / "out").glob("*/run.json")]


def test_a_loop_that_takes_more_and_more_memory_is_stopped(tmp_path, monkeypatch):
    used = environment.own_memory_bytes()
    monkeypatch.setattr(environment, "usable_memory_bytes", lambda: used + 300_000_000)
    monkeypatch.setattr(onnxruntime, "WATCH_S", 0.01)
    session = onnxruntime.open_session(looping(tmp_path / "m.onnx", grows=True), PLAIN, batch=1, threads=1)
    with pytest.raises(Unending, match="memory"):
        session.infer({"image": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_graph_that_ends_is_watched_at_its_first_inference_alone(tmp_path):
    session = onnxruntime.open_session(onnx_file(tmp_path / "m.onnx"), PLAIN, batch=1, threads=1)
    before = threading.active_count()
    first, second = (session.infer({"image": np.ones((1, 3, 8, 8), np.float32)})["logits"] for _ in range(2))
    assert before == threading.active_count()
    assert (first == second).all()


def test_a_stopped_worker_is_one_error_and_the_other_variants_go_on(words, tmp_path, monkeypatch):
    stopped = tmp_path / "stopped"
    now = [0.0]

    def clock() -> float:
        # Time passes for the parent only while a worker is stopped, however busy this machine is.
        now[0] += stopped.exists()
        return now[0]

    monkeypatch.setattr(child, "clock", clock)
    monkeypatch.setattr(child, "POLL_S", 0.5)
    monkeypatch.setattr(worker, "SILENCE_LIMIT_S", 5.0)

    def stop_the_first() -> None:
        deadline = time.monotonic() + TIME_LIMIT_S
        while not (pid := worker_of(tmp_path / "out", "ort-fp32")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)
        stopped.touch()
        while Path(f"/proc/{pid}/exe").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        stopped.unlink()

    thread = threading.Thread(target=stop_the_first)
    thread.start()
    done = cli("profile", onnx_file(tmp_path / "m.onnx"), "--recipe", "ort-fp32,openvino-fp32", *words)
    thread.join()
    assert 3 == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    assert "made no progress" in done.stderr
    assert ["openvino-fp32"] == [load(file).artifact.recipe.id for file in (tmp_path / "out").glob("*/run.json")]


def worker_of(out: Path, recipe: str) -> int | None:
    """Return the process that measures a recipe's variant below `out`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "edgebench.worker" in command and str(out) in command and f"--{recipe}" in command:
            return int(process.name)
    return None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_program_are_taken_as_ctrl_c(number, words, tmp_path):
    code, errors = interrupt("profile", onnx_file(tmp_path / "m.onnx"), "--recipe", "ort-fp32", *words, number=number,
                             when=lambda: worker_of(tmp_path / "out", "ort-fp32") is not None)
    assert 3 == code, errors
    assert "error: interrupted" in errors
    assert worker_of(tmp_path / "out", "ort-fp32") is None
