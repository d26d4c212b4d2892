"""What a script says on its way: paths from here, one line a tenth, one reason for all models."""

import logging
from pathlib import Path

from tiny_folders import write_tiny_llama

from slimtune import console
from slimtune.models import loading
from slimtune.models.compute import Compute


def test_paths_below_the_working_directory_are_said_from_there(
    tmp_path, monkeypatch, capsys
) -> None:
    here = tmp_path / "my project"
    here.mkdir()
    monkeypatch.chdir(here)
    console.note(f"{here}/models/base: read; '{here}/a b', {here}; {here}-2/c {tmp_path}/d")
    told = f"models/base: read; 'a b', {here}; {here}-2/c {tmp_path}/d\n"
    assert capsys.readouterr().err == told
    record = logging.LogRecord("slimtune", 20, "", 1, "%s: 3 rows", (here / "rows.jsonl",), None)
    assert console._Shown("%(message)s").format(record) == "rows.jsonl: 3 rows"


def test_commands_run_from_where_the_user_is(tmp_path, monkeypatch, capsys) -> None:
    project = Path(console.__file__).parents[2]
    told = "run `python finetune/prepare_data.py --input x`; finetune/launch, python finetune.py"
    monkeypatch.chdir(project)
    assert console.runnable(told) == told
    monkeypatch.chdir(project.parent)
    assert f"`python {project.name}/finetune/prepare_data.py --input x`" in console.runnable(told)
    monkeypatch.chdir(tmp_path)
    script = project / "finetune/prepare_data.py"
    assert console.runnable(told) == told.replace("finetune/prepare_data.py", str(script))
    console.note(told)
    console.wrote(numbers={}, next="python finetune/prepare_data.py")
    said = capsys.readouterr()
    assert f"`python {script} --input x`" in said.err and said.out == f"next:  python {script}\n"
    monkeypatch.setattr(console, "_SCRIPTS", Path("/my project/finetune"))
    assert "python '/my project/finetune/train_lora.py'" in console.runnable(
        "python finetune/train_lora.py"
    )


def test_nothing_breaks_where_the_working_directory_is_gone_or_the_root(
    tmp_path, monkeypatch, capsys
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    console.note("/etc/hosts is read by python finetune/train_lora.py")
    monkeypatch.chdir(Path("/"))
    console.note("of /: a / b, /etc/hosts")
    assert (
        capsys.readouterr().err
        == "/etc/hosts is read by python finetune/train_lora.py\nof /: a / b, /etc/hosts\n"
    )


def test_progress_is_a_line_a_tenth_and_the_last_one() -> None:
    for total, step in ((340, 7), (3, 1), (10, 10), (1000, 1), (5, 2)):
        ends = [*range(step, total, step), total]
        pairs = zip([0, *ends], ends, strict=False)
        told = [end for before, end in pairs if console.tenth_done(before, end, total)]
        assert len(told) <= 10 and told[-1] == total


def test_why_it_computes_in_float32_is_said_once(tmp_path, caplog, monkeypatch) -> None:
    caplog.set_level("INFO", "slimtune")
    monkeypatch.setattr(loading, "_explained", set())
    monkeypatch.setattr("slimtune.models.compute.multiplies_bfloat16", lambda: False)
    base = write_tiny_llama(tmp_path / "base")
    for _ in range(2):
        loading.load_model(base, Compute.choose("cpu"))
    told = [line for line in caplog.messages if line.startswith(str(base))]
    assert told == [
        f"{base}: cpu, float32: 16-bit numbers are slow on this CPU, and less exact",
        f"{base}: cpu, float32",
    ]
