"""What the system refuses has words of its own, whoever says it; a bug of ours has none."""

import errno
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from slimtune.errors import ExitCode, InputError, SlimTuneError, naming
from slimtune.machine import refusals
from slimtune.machine.refusals import errno_of, is_panic, refusal_of

NAMES = {"ETXTBSY", "EUSERS", "EREMOTEIO", "ENOLCK"}  # without words of ours: the system's


@pytest.mark.parametrize("code", [*refusals._WORDS, *refusals._SHORT])
def test_every_errno_has_a_place_a_reason_and_a_cure(code: int, tmp_path: Path) -> None:
    known = refusal_of(OSError(code, "words of the system", str(tmp_path / "out")))
    assert known.exit_code == ExitCode.RESOURCES
    assert str(tmp_path / "out") in known.what and known.why and known.cure


@pytest.mark.parametrize("name", sorted(NAMES & set(vars(errno))))
def test_an_errno_without_words_has_the_systems(name: str) -> None:
    known = refusal_of(OSError(getattr(errno, name), "?", "/x"))
    assert known.exit_code == ExitCode.RESOURCES and known.why != "?"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EISDIR, errno.ENOENT])
def test_an_input_that_cannot_be_read_is_the_inputs_fault(code: int, tmp_path: Path) -> None:
    error = OSError(code, "no", str(tmp_path / "rows" / "raw.json"))
    known = refusal_of(error, read=[tmp_path / "rows"])
    assert isinstance(known, InputError) and "raw.json: cannot be read" in known.what
    assert refusal_of(error, read=[tmp_path / "other"]).exit_code == ExitCode.RESOURCES


def test_an_input_that_is_a_link_is_known_by_its_name_and_by_what_it_leads_to(tmp_path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "blob").write_text("x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "cache" / "blob")
    (tmp_path / "linked").symlink_to(tmp_path / "model")
    for place in ("model/config.json", "linked/config.json"):
        for read in ("model", "linked"):
            error = OSError(errno.EIO, "no", str(tmp_path / place))
            assert isinstance(refusal_of(error, [tmp_path / read]), InputError)


def test_a_circle_of_links_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows").symlink_to("rows")
    told = RuntimeError(f"Symlink loop from '{tmp_path / 'rows'}'")  # Python 3.11's resolve()
    known = refusal_of(told, [tmp_path / "rows"])
    assert isinstance(known, InputError) and "rows: cannot be read" in known.what


def test_too_many_open_files_are_no_inputs_fault(tmp_path: Path) -> None:
    known = refusal_of(OSError(errno.EMFILE, "no", str(tmp_path / "raw.json")), [tmp_path])
    assert known.exit_code == ExitCode.RESOURCES and "the limit is" in known.what


def test_too_many_open_files_in_the_words_of_c_plus_plus(tmp_path: Path) -> None:
    """torch maps weights, and tells the errno behind the system's own words for it."""
    for code, kind in [(errno.EMFILE, ExitCode.RESOURCES), (errno.EACCES, ExitCode.INPUT)]:
        file = tmp_path / "model.safetensors"
        told = f"unable to open file <{file}> in read-only mode: {os.strerror(code)} ({code})"
        known = refusal_of(RuntimeError(told), [tmp_path])
        assert known.exit_code == kind and "model.safetensors: " in known.what
    with pytest.raises(RuntimeError) as caught:
        torch.UntypedStorage.from_file(str(tmp_path / "none"), False, 8)
    if sys.platform != "win32":
        assert refusal_of(caught.value).why == "it is not there, or no longer"
    for said in ("the loss: no file (24)", "loss: Success (99999999999)"):
        assert refusal_of(RuntimeError(said)) is None


def raised(call: object, *arguments: object, **named: object) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011, B017
        call(*arguments, **named)
    return caught.value


def torch_wants_too_much() -> object:
    return torch.empty(1 << 60)


def numpy_wants_too_much() -> object:
    return numpy.empty(1 << 60, numpy.uint8)


@pytest.mark.parametrize("want", [torch_wants_too_much, numpy_wants_too_much])
def test_memory_that_libraries_ask_for_in_vain(want: object) -> None:
    known = refusal_of(raised(want), cure="lower --batch-size")
    assert known.what == "out of memory" and known.exit_code == ExitCode.RESOURCES
    assert "lower --batch-size" in known.cure and "free" in known.why


SENTENCES = [
    "could not create a primitive",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "std::bad_alloc",
    "libtorch_cpu.so: failed to map segment from shared object",
    "memory allocation of 68719476736 bytes failed",
    "unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)",
    "The paging file is too small for this operation to complete. (os error 1455)",
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to "
    "allocate 68719476736 bytes.",
]


@pytest.mark.parametrize("said", SENTENCES)
def test_memory_in_the_words_of_others(said: str) -> None:
    assert refusal_of(RuntimeError(said)).what == "out of memory"


def test_what_was_asked_for_is_said() -> None:
    assert "68.7 GB more were asked for" in refusal_of(RuntimeError(SENTENCES[-1])).why


def test_safetensors_on_a_full_disk(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(RuntimeError) as caught, naming(tmp_path / "model.safetensors"):
        raise RuntimeError(text)
    known = refusal_of(caught.value)
    assert "model.safetensors: the disk is full (" in known.what and "free)" in known.what
    known = refusal_of(raised(save_file, {"a": torch.zeros(9)}, tmp_path / "none" / "x"))
    assert known.exit_code == ExitCode.RESOURCES and "a bug" not in str(known)


def test_torch_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(Exception) as caught:  # noqa: PT011, B017
        torch.save({"state": torch.zeros(1 << 16)}, "/dev/full")
    known = refusal_of(caught.value)
    assert known.exit_code == ExitCode.RESOURCES and "could not be written to its end" in known.what


def test_a_folder_that_cannot_be_copied(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").symlink_to(tmp_path / "nowhere")
    error = raised(shutil.copytree, tmp_path / "from", tmp_path / "to")
    assert isinstance(error, shutil.Error)
    known = refusal_of(error)
    assert known.why == "it is not there, or no longer" and "to/file" in known.what


class PanicException(BaseException):
    """As pyo3 makes it: no Exception, so that `except Exception` lets it pass."""


def test_a_panic_of_rust_is_told() -> None:
    assert is_panic(PanicException("x"))
    assert refusal_of(PanicException("memory allocation of 80 bytes failed")).what.startswith("out")
    assert "Rust" in refusal_of(PanicException("called `Option::unwrap()`")).what


def test_the_cause_counts_and_what_is_merely_beside_it_does_not() -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.EROFS, "no", "/x")
        except OSError as error:
            raise ValueError("cannot save") from error

    def beside() -> None:
        try:
            raise OSError(errno.EROFS, "no", "/x")
        except OSError:
            raise KeyError("a bug in the handler")  # noqa: B904

    assert "read-only" in refusal_of(raised(wrapped)).why
    assert refusal_of(raised(beside)) is None


@pytest.mark.parametrize(
    "bug",
    [KeyError("x"), ValueError("bad"), AssertionError(), OSError("Can't load the model"),
     ImportError("cannot import name 'x'", name="slimtune.data"), RuntimeError("shape mismatch")],
)  # fmt: skip
def test_a_bug_stays_a_bug(bug: Exception) -> None:
    assert refusal_of(bug) is None


def test_an_error_of_ours_stays_as_it_is() -> None:
    ours = SlimTuneError("a", "b", "c")
    assert refusal_of(ours) is ours


def test_a_read_that_fails_names_the_file_that_was_open(tmp_path: Path) -> None:
    """Of the kernel's own making: the first page of a process cannot be read."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("no /proc on this system")
    link = tmp_path / "raw.json"
    link.symlink_to("/proc/self/mem")

    def first_bytes() -> bytes:
        with link.open("rb") as handle:
            return handle.read(4)

    for read in (link.read_bytes, link.read_text, first_bytes):
        known = refusal_of(raised(read), read=[link])
        assert known.exit_code == ExitCode.INPUT and "raw.json: cannot be read" in known.what


def test_threads_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading._start_new_thread", refuse)
    with ThreadPoolExecutor(1) as pool:
        known = refusal_of(raised(pool.submit, print))
    assert "no more processes or threads" in known.what


def test_rusts_numbers_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """There they are Windows' own: 112 is a full disk."""

    class Told:
        errno = errno.ENOSPC

    assert errno_of(RuntimeError("no (os error 28)")) == errno.ENOSPC
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(refusals.ctypes, "WinError", lambda number: Told, raising=False)
    assert errno_of(RuntimeError("no (os error 112)")) == errno.ENOSPC
