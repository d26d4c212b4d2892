"""What a stranger packs with data or a model touches nothing outside, and nothing is read there."""

import hashlib
import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from running import files_under, run, succeeds

from slimtune.artifacts import Stage, files, records, require, stage_files, stage_folder
from slimtune.artifacts.files import inside, is_plain
from slimtune.config import Config, Options
from slimtune.errors import InputError, SettingsError
from slimtune.models.folders import weight_files

SECRET = b"a private key"


def config(**options: bool) -> Config:
    settings = Config()
    settings._options = Options(**options)
    return settings


def writing(manifest: Path, names: list[str]) -> AbstractContextManager[Stage]:
    """The stage that writes files of these names, again."""
    outputs = [manifest.with_name(name) for name in names]
    return stage_files("prepare_data", manifest, config(overwrite=True), outputs=outputs)


def manifest(contents: dict[str, bytes], inputs: tuple[str, ...] = ()) -> dict:
    """A manifest as ours are, of files with these bytes, whatever their names."""
    sums = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in contents.items()
    }
    known = {"run_id": "1", "stage": "prepare_data", "started": "", "seconds": 1.0}
    known |= {"peak_memory_bytes": 1, "command": ["x.py"], "settings": {}, "metrics": {}}
    known |= {"inputs": [{"path": path, "run_id": None} for path in inputs], "files": sums}
    return known | {"versions": {}, "machine": "m", "git_commit": None}


@pytest.fixture
def world(tmp_path) -> tuple[Path, Path]:
    """(the user's home with a secret, a stranger's folder below it)."""
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "home/.ssh/id").write_bytes(SECRET)
    (tmp_path / "home/stranger").mkdir()
    return tmp_path / "home", tmp_path / "home/stranger"


def plant(folder: Path, name: str, data: bytes = b"replaced") -> None:
    """A finished install in `folder` that wants to write `name`, and an old output that had it."""
    ready = folder / "train.ready"
    ready.mkdir(parents=True)
    if not Path(name).is_absolute() and ".." not in name:
        (ready / name).write_bytes(data)
    else:
        (ready / Path(name).name).write_bytes(data)
    (ready / "train_run.json").write_text(json.dumps(manifest({name: data})))


NAMES = ["../.ssh/id", "../../home/.ssh/id", "/etc/hostname", "a/../../.ssh/id", "C:\\x", "..\\x"]


@pytest.mark.parametrize(
    "name", [*NAMES, "", ".", "..", "a\\b", "a//b", "./a", "a\0b", ".. /x", "a\nb", "a/", 3, None]
)
def test_a_name_that_leads_elsewhere_is_no_name(name, tmp_path) -> None:
    assert not is_plain(name)
    with pytest.raises(InputError, match="only speak of files inside"):
        inside(tmp_path, name, "manifest.json")


@pytest.mark.parametrize(
    "name", ["a.json", "sub/part-1.safetensors", "..a", "数据.jsonl", ".a", "a b:c"]
)
def test_a_plain_name_stays_inside(name, tmp_path) -> None:
    assert is_plain(name) and inside(tmp_path, name, "m") == tmp_path / name


@pytest.mark.parametrize("name", NAMES)
def test_an_install_of_somebody_else_writes_nothing(world, name) -> None:
    home, folder = world
    plant(folder, name)
    before = files_under(home)
    (folder / "rows.jsonl").write_text("{}")
    require(folder / "rows.jsonl")
    with (
        pytest.raises(SettingsError, match="not what a stopped run"),
        writing(folder / "train_run.json", ["train_train.jsonl"]),
    ):
        pass
    assert files_under(home) == before | {"stranger/rows.jsonl": b"{}"}


@pytest.mark.parametrize("name", NAMES)
def test_an_old_manifest_of_somebody_else_removes_nothing(world, name) -> None:
    home, folder = world
    old = json.dumps(manifest({name: SECRET}))
    (folder / "train_run.json").write_text(old)
    with writing(folder / "train_run.json", ["train_train.jsonl"]) as stage:
        (stage.folder / "train_train.jsonl").write_text("{}")
    assert (home / ".ssh/id").read_bytes() == SECRET
    assert (folder / "train_train.jsonl").exists()


def test_of_the_old_output_only_what_is_unchanged_goes(tmp_path) -> None:
    names = ["kept1", "gone1", "kept2", "gone2"]
    for number in (1, 2):
        with writing(tmp_path / "o_run.json", names) as stage:
            (stage.folder / f"kept{number}").write_text("theirs")
            (stage.folder / f"gone{number}").write_text("ours")
        (tmp_path / f"kept{number}").write_text("changed by its reader")
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert names == {"kept1", "kept2", "gone2", "o_run.json"}


@pytest.mark.parametrize("damage", ["bytes", "link", "folder in its place", "no manifest"])
def test_a_stuck_install_names_its_cure_and_stops_only_its_writer(tmp_path, damage) -> None:
    ready = tmp_path / "train.ready"
    ready.mkdir()
    (ready / "rows").write_bytes(b"rows")
    (ready / "train_run.json").write_text(json.dumps(manifest({"rows": b"rows"})))
    if damage == "bytes":
        (ready / "rows").write_bytes(b"sowr")
    elif damage == "link":
        (ready / "rows").rename(tmp_path / "elsewhere")
        (ready / "rows").symlink_to(tmp_path / "elsewhere")
    elif damage == "no manifest":
        (ready / "train_run.json").unlink()
    else:
        (tmp_path / "rows").mkdir()
    with (
        pytest.raises(SettingsError, match=r"(delete .*train\.ready|move .*rows) "),
        writing(tmp_path / "train_run.json", ["rows"]),
    ):
        pass
    with writing(tmp_path / "other_run.json", ["other"]) as stage:
        (stage.folder / "other").write_text("o")
    require(tmp_path / "other")
    shutil.rmtree(ready)
    shutil.rmtree(tmp_path / "rows", ignore_errors=True)
    with writing(tmp_path / "train_run.json", ["rows"]) as stage:
        (stage.folder / "rows").write_text("m")


def test_an_output_that_is_a_folder_is_seen_before_the_work(settings, tmp_path) -> None:
    (tmp_path / "train_test.jsonl").mkdir()
    ran = run("prepare_data", *settings, "--output-dir", tmp_path)
    assert ran.code == 2 and "train_test.jsonl: its place is taken" in ran.err


def test_a_file_where_a_folder_goes_is_seen_before_the_work(settings, merged, tmp_path) -> None:
    (tmp_path / "pruned").write_text("mine")
    ran = run("model_pruning", *settings, "--output-dir", tmp_path / "pruned")
    assert ran.code == 2 and "its place is taken" in ran.err


@pytest.mark.parametrize("ending", [".partial", ".old"])
def test_a_link_beside_the_output_is_not_followed(tmp_path, ending) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis").write_text("years of work")
    (tmp_path / f"out{ending}").symlink_to(tmp_path / "mine")
    for _ in range(2):
        with stage_folder("x", tmp_path / "out", config(overwrite=True)) as stage:
            (stage.folder / "thesis").write_text("of the stage")
    assert (tmp_path / "mine/thesis").read_text() == "years of work"
    assert (tmp_path / "out/thesis").read_text() == "of the stage"


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": {"a": "b"}},
        {"files": {"a": {"sha256": 1, "bytes": 1}}},
        {"files": {"../secret": {"sha256": "0", "bytes": 13}}},
        {"inputs": {"path": "x"}},
        {"inputs": [{"path": 3, "run_id": None}]},
        {"command": []},
        {"command": [1]},
        {"settings": {"data": 3}},
        {"stage": None},
        {"stage": "\x1b[2J"},
        {"started": "\x1b[2J"},
        {"command": ["../evil.py"]},
        {"git_commit": 3},
        {"metrics": "good"},
    ],
)
def test_a_record_of_the_wrong_form_is_not_believed(tmp_path, change) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/run.json").write_text(json.dumps(manifest({}) | change))
    assert records.run_of(tmp_path / "model") is None
    assert records.lineage(tmp_path / "model") == {}
    with pytest.raises(InputError, match="not a record that SlimTune writes"):
        require(tmp_path / "model")


def test_a_huge_record_is_not_read(tmp_path, monkeypatch) -> None:
    (tmp_path / "run.json").write_text(json.dumps(manifest({})))
    assert records.run_of(tmp_path)
    monkeypatch.setattr(records, "_LARGEST", 100)
    assert records.run_of(tmp_path) is None


def test_a_lineage_that_bites_its_tail_ends(tmp_path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(manifest({}, (str(tmp_path), "/dev/zero"))))
    assert list(records.lineage(tmp_path)) == ["prepare_data"]


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors"])
def test_weights_outside_the_folder_are_not_read(tmp_path, name) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "outside.safetensors").write_bytes(b"w")
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="only speak of files inside"):
        weight_files(tmp_path / "model")


SCRIPTS = {
    "prepare_data": ("--input", "{folder}/raw.json", "--output-dir", "{out}"),
    "train_lora": ("--train-data", "{folder}/train_train.jsonl", "--output-dir", "{out}"),
    "model_pruning": ("--model-path", "{folder}/model", "--output-dir", "{out}"),
    "knowledge_distillation": ("--student-model", "{folder}/model", "--output-dir", "{out}"),
    "train_pruned_distilled": ("--base-model", "{folder}/model", "--output-dir", "{out}"),
    "evaluate_model": ("--base-model", "{folder}/model", "--lora-model", "null")
    + ("--test-data", "{folder}/train_test.jsonl", "--output", "{out}/results.csv"),
    "convert_to_gguf": ("--model-path", "{folder}/model", "--output-dir", "{out}"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_attack_fails_in_every_script(script, project, settings, merged, rows, world) -> None:
    """A folder with everything a script reads, and installs that want the user's files."""
    home, folder = world
    shutil.copy(project / "raw.json", folder / "raw.json")
    for file in rows.glob("train_*.jsonl"):
        shutil.copy(file, folder / file.name)
    shutil.copytree(merged, folder / "model")
    plant(folder, "../.ssh/id")
    (folder / "model_run.json").write_text(json.dumps(manifest({"../.ssh/id": SECRET})))
    shutil.copytree(folder / "train.ready", folder / "model.ready")
    os.rename(folder / "model.ready/train_run.json", folder / "model.ready/model_run.json")
    before, out = files_under(home), home.parent / "out"
    flags = [word.format(folder=folder, out=out) for word in SCRIPTS[script]]
    run(script, *settings, *flags, "--dry-run")
    assert files_under(home) == before and not files_under(out)
    if script in ("prepare_data", "model_pruning", "convert_to_gguf"):  # quick ones, for real
        succeeds(script, *settings, *flags)
        assert files_under(home) == before


def test_json_never_holds_a_bare_nan(tmp_path) -> None:
    files.write_json(tmp_path / "m.json", {"a": float("nan"), "b": [1.5, (float("inf"),)]})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": [1.5, [None]]}


def test_what_is_sealed_is_what_was_written(tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_text("a")
    (tmp_path / "m.json").write_text("{}")
    sealed = files.seal(tmp_path, without="m.json")
    assert list(sealed) == ["sub/a"] and files.broken(tmp_path, sealed) is None
    (tmp_path / "sub/a").write_text("b")
    assert files.broken(tmp_path, sealed) == "sub/a"
    (tmp_path / "sub/a").unlink()
    assert files.broken(tmp_path, sealed) == "sub/a"
