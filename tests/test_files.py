"""Files that a user names: what stands there in place of the expected content is said in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgebench.errors import EdgebenchError, ExitCode, InvalidInput, UsageError
from edgebench.files import printable, read_text, refuse_stand_in, refuse_unreadable, refuse_unwritable

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5000000\n"
STAND_INS = {
    "pointer": POINTER,
    "pointer with an extension": POINTER.replace(b"oid", b"ext-0-case sha256:1\noid"),
    "annex": b"../../.git/annex/objects/Xk/1q/SHA256E-s12--ab/SHA256E-s12--ab\n",
    "page": b"\n<!-- saved -->\n<!DOCTYPE html>\n<html><head><title>Sign in</title>",
    "bare page": b"<HTML><BODY>Not found</BODY></HTML>",
    "bucket": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    "zeros": bytes(70_000),
    "plain text": b"Entry not found\n",
    "json": b'{"error": "Repository not found"}',
    "gzip": b"\x1f\x8b\x08\x00rest",
}


@pytest.mark.parametrize("kind", STAND_INS)
def test_what_stands_in_for_a_binary_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(STAND_INS[kind])
    with pytest.raises(InvalidInput) as caught:
        refuse_stand_in(file, "weights")
    assert str(file) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"\x08\x0a\x12\x07pytorch", bytes(5000) + b"\x01",
                                     b"\x40\0\0\0\0\0\0\0{}"])
def test_binary_content_is_let_through(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(content)
    refuse_stand_in(file, "weights")


def test_raw_tensors_may_be_zeros_or_look_like_text(tmp_path: Path) -> None:
    for content in (bytes(400), b"aaaaaaaa" * 40):
        (tmp_path / "w.data").write_bytes(content)
        refuse_stand_in(tmp_path / "w.data", "weights", binary=False)


def test_a_page_names_its_title_and_a_pointer_the_size_of_the_file(tmp_path: Path) -> None:
    for kind, words in (("page", "Sign in"), ("bucket", "AccessDenied"), ("pointer", "5,000,000")):
        (tmp_path / "f").write_bytes(STAND_INS[kind])
        with pytest.raises(InvalidInput) as caught:
            refuse_stand_in(tmp_path / "f", "weights")
        assert words in caught.value.message


@pytest.mark.parametrize(("kind", "code"), [("missing", ExitCode.USAGE), ("folder", ExitCode.USAGE),
                                            ("empty", ExitCode.UNMEASURABLE), ("pipe", ExitCode.UNMEASURABLE),
                                            ("device", ExitCode.UNMEASURABLE), ("dangling", ExitCode.UNMEASURABLE),
                                            ("loop", ExitCode.USAGE), ("too long", ExitCode.USAGE),
                                            ("zero byte", ExitCode.USAGE), ("below a file", ExitCode.USAGE)])
def test_what_is_no_readable_file_is_refused_without_waiting_for_it(tmp_path: Path, kind: str, code: ExitCode) -> None:
    path = tmp_path / "given"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "too long":
        path = tmp_path / ("x" * 300)
    elif kind == "zero byte":
        path = tmp_path / "a\0b"
    elif kind == "below a file":
        path.write_bytes(b"x")
        path = path / "model.onnx"
    with pytest.raises(EdgebenchError) as caught:
        refuse_unreadable(path, "a model", missing=UsageError)
    assert code == caught.value.exit_code


def test_text_is_read_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfcat\r\ndog\n")
    assert ["cat", "dog"] == read_text(tmp_path / "t", "a list").splitlines()


@pytest.mark.parametrize("content", [b"caf\xe9\n", "cat\n".encode("utf-16"), b"cat\0dog\n", b"", POINTER,
                                     b"<!doctype html><p>sign in"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InvalidInput):
        read_text(tmp_path / "t", "a list")


def test_where_a_file_can_be_written_nothing_is_left_behind(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new" / "deep" / "page.html", "")
    refuse_unwritable(Path("/dev/null"), "")
    assert [] == list(tmp_path.iterdir())


def test_a_folder_or_a_file_in_the_way_of_an_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "page.html", tmp_path / "file" / "deep" / "page.html"):
        with pytest.raises(InvalidInput):
            refuse_unwritable(path, "")


def test_control_characters_never_reach_a_terminal() -> None:
    assert "a�b�" == printable(b"a\x1bb\xff")
