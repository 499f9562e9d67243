"""Every command with files that are none: one line, an exit code of the contract, and never a defect of edgebench."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgebench.errors import CannotMeasure
from edgebench.export import Exporter
from tests.commands import cli
from tests.conftest import picture
from tests.finished_runs import FLIPS, SINCE, policy_file, write_pair
from tests.models import class_file, onnx_file, preprocess_file

# What a command may end with when its input is none.
REFUSALS = (2, 3)


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02.")


def _content(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


ODD: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "empty": _content(b""),
    "pointer": _content(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"),
    "page": _content(b"<!doctype html><title>Sign in</title>"),
    "bytes": _content(bytes(range(256)) * 20),
    "latin": _content(b"caf\xe9 = 'cr\xe8me'\n"),
    "nested": _content(b"[" * 100_000),
    "list": _content(b"[1, 2, 3]"),
    "null": _content(b"null"),
    "object": _content(b'{"schema": 3, "artifact": [], "id": {}}'),
    "numbers": _content(b'{"schema": "edgebench.run/1", "variant": 1e999}'),
    "version": _content(b'{"schema": "edgebench.run/999999999999999999999999"}'),
    "toml": _content(b'id = 1\n[[rules]]\nid = []\n'),
    "zip": _zip,
    "folder": _folder,
    "pipe": os.mkfifo,
    "link": _link,
    "below a file": lambda path: None,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input of every kind that is in order."""
    folder = tmp_path_factory.mktemp("good")
    write_pair(folder / "out", images=60)
    policy_file(folder, FLIPS, SINCE)
    onnx_file(folder / "net.onnx")
    class_file(folder)
    preprocess_file(folder)
    for number, name in enumerate(("cat", "dog", "owl")):
        (folder / "data" / name).mkdir(parents=True)
        picture(number).save(folder / "data" / name / "a.png")
    return folder


# ODD stands for the odd file, with the suffix that follows it; GOOD for the folder of good ones.
COMMANDS = (
    "report ODD", "report GOOD/out ODD", "report ODD --rescore",
    "gate ODD --policy GOOD/policy.toml", "gate GOOD/out --policy ODD.toml", "gate GOOD/out --policy ODD",
    "gate GOOD/out --policy GOOD/policy.toml --baseline ODD",
    "gate GOOD/out --policy GOOD/policy.toml --baseline promoted --history ODD",
    "gate GOOD/out --policy GOOD/policy.toml --noise-floor ODD",
    "gate ODD --policy GOOD/policy.toml --plan",
    "compare ODD ODD", "policies --explain ODD.toml", "baseline promote ODD --why test --history OUT",
    "history ODD", "data check ODD", "evaluate ODD --data GOOD/data --out OUT",
    "export ODD.onnx --recipe ort-fp32 --out OUT", "export ODD.pt2 --recipe ort-fp32 --out OUT",
    "export GOOD/net.onnx --recipe ODD.toml --out OUT",
    "export GOOD/net.onnx --recipe ort-fp32 --classes ODD --out OUT",
    "export GOOD/net.onnx --recipe ort-fp32 --preprocess ODD --out OUT",
    "export GOOD/net.onnx --recipe ort-int8 --calibration-data ODD --preprocess GOOD/preprocess.toml --out OUT",
    "export timm:test_vit --weights ODD --recipe ort-fp32 --out OUT",
    "export open_clip:ViT-S-32-alt --weights random --templates ODD --recipe ort-fp32 --out OUT",
    "profile GOOD/net.onnx --device ODD.toml --out OUT --budget smoke --properties none",
    "profile GOOD/net.onnx --recipe ort-fp32 --data ODD --properties accuracy --out OUT",
    "profile GOOD/net.onnx --recipe ort-fp32 --data GOOD/data --ood ODD --preprocess GOOD/preprocess.toml --out OUT",
    "profile GOOD/net.onnx --recipe ort-fp32 --data GOOD/data --until ODD.toml --out OUT",
    "profile GOOD/net.onnx --recipe ort-fp32 --properties none --budget smoke --out ODD",
)
@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is odd is refused before anything is exported or measured: those would take the time of this test."""
    def stop(*_: object, **__: object) -> None:
        raise CannotMeasure("reached the export")

    monkeypatch.setattr(Exporter, "export", stop)


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Interrupt what waits for a pipe that nobody writes to."""
    def expire(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("command", COMMANDS)
def test_odd_files_are_refused_in_one_line(good: Path, tmp_path: Path, no_measuring: None, command: str, kind: str) -> None:
    odd = tmp_path / "odd"
    if kind == "below a file":
        odd.touch()
        odd = odd / "inside"
    words = [word.replace("GOOD", str(good)).replace("OUT", str(tmp_path / "results")).replace("ODD", str(odd))
             for word in command.split()]
    named = next(Path(word) for word in words if word.startswith(str(odd)))
    ODD[kind](named)
    with in_time(120):
        done = cli(*words)
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode in REFUSALS:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        # A gate whose baseline or run cannot be read says so in its verdicts.
        assert errors or "NOT JUDGED" in done.stdout
        assert not any("/tmp/tmp" in line or "C++" in line or "0x7f" in line for line in errors)
    else:
        assert done.returncode in (0, 1)
