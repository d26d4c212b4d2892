"""A NAME.ready that came with somebody's data is nobody's to finish, and our own is never lost."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import ATTACKS, PRECIOUS, ROWS, came_in, everything, write_record
from running import files_under

from slimtune.artifacts import finish_files, lineage, require, run_of, stage_files, stage_folder
from slimtune.artifacts.files import write_text
from slimtune.config import Config, Options
from slimtune.errors import InputError, SettingsError
from slimtune.report.cost_card import write_card


@pytest.fixture
def came(tmp_path: Path) -> Path:
    return came_in(tmp_path)


def config(**options: bool) -> Config:
    settings = Config()
    settings._options = Options(**options)
    return settings


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("read", [require, run_of, lineage])
def test_readers_change_nothing(came: Path, attack: Callable, read: Callable) -> None:
    attack(came, "any")
    before = everything(came.parent)
    read(came / ROWS)
    read(came)
    assert everything(came.parent) == before


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"dry_run": True}])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_writer_finishes_nothing_foreign(came: Path, attack: Callable, flags: dict) -> None:
    attack(came, "train")
    before = everything(came.parent)
    manifest = came / "train_run.json"
    with pytest.raises(SettingsError, match=r"train\.ready: not what a stopped run"):
        finish_files(manifest, config(**flags), [came / ROWS])
    if not flags.get("dry_run"):
        with pytest.raises(SettingsError, match="delete"):  # noqa: SIM117
            with stage_files("prepare_data", manifest, config(**flags), outputs=[came / ROWS]):
                pass
        (came / ".train_run.json.lock").unlink()
    assert everything(came.parent) == before


def test_an_old_record_removes_only_what_the_stage_wrote_itself(came: Path) -> None:
    """The file must be one of the stage's, and still be as its record says."""
    names = {ROWS: PRECIOUS, "train_test.jsonl": PRECIOUS, "train_validation.jsonl": PRECIOUS}
    for name, content in {"notes.txt": PRECIOUS, **names}.items():
        (came / name).write_bytes(content)
    (came / "train_validation.jsonl").write_bytes(b"changed by hand")
    manifest, stranger = came / "train_run.json", {"notes.txt": PRECIOUS}
    write_record(manifest, names | stranger)
    outputs = [came / name for name in names]
    with stage_files("prepare_data", manifest, config(overwrite=True), outputs=outputs) as stage:
        (stage.folder / ROWS).write_bytes(b"new")
    left = {name: data for name, data in everything(came).items() if name.endswith((".txt", "l"))}
    assert left == {
        "notes.txt": PRECIOUS,
        "train_validation.jsonl": b"changed by hand",
        ROWS: b"new",
    }


class Killed(BaseException):
    pass


def write_both(folder: Path, content: str, **options: bool) -> None:
    """A stage that writes two files, and in its first run a third."""
    outputs = [folder / name for name in ("a", "b", "c")]
    with stage_files("x", folder / "n_run.json", config(**options), outputs=outputs) as stage:
        for name in ("a", "b", *(["c"] if content == "old" else [])):
            (stage.folder / name).write_text(content)


@pytest.mark.parametrize("moves", range(4))
def test_killed_between_two_moves_it_is_finished_by_its_own_writer(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 0 to 2 files, and after the manifest (3)."""
    write_both(tmp_path, "old")
    done, replace = [], os.replace

    def move(source: Path, target: Path) -> None:
        if Path(source).parent.suffix == ".ready":
            if len(done) == moves:
                raise Killed
            done.append(target)
        replace(source, target)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", move)
        patched.setattr(Path, "rmdir", kill)
        write_both(tmp_path, "new", overwrite=True)
    left = everything(tmp_path)
    # Before the first move the old files are whole, after the last one the new ones are.
    if moves in (0, 3):
        require(tmp_path / "b")
    else:
        with pytest.raises(InputError, match="stopped while its files moved"):
            require(tmp_path / "b")
    assert everything(tmp_path) == left
    with pytest.raises(SettingsError, match="exists already"):
        write_both(tmp_path, "newer")
    require(tmp_path / "b")
    assert files_under(tmp_path).keys() == {"a", "b", "n_run.json"}
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"
    assert not (tmp_path / "n.ready").exists()


def test_a_pipe_for_a_record_holds_nobody_up(came: Path) -> None:
    os.mkfifo(came / "run.json")
    assert run_of(came) is None


def test_lineage_comes_to_an_end(came: Path) -> None:
    """Records that name each other, and paths that no system has."""
    odd = ["x" * 4000, "/" + "y" * 300, str(came)]
    inputs = [{"path": path, "run_id": None} for path in odd]
    write_record(came / "run.json", {}, inputs=inputs)
    assert list(lineage(came)) == ["prepare_data"]


def test_a_folder_that_the_user_has_put_aside_stays(tmp_path: Path) -> None:
    for place in ("pruned.old", "pruned"):
        with stage_folder("model_pruning", tmp_path / place, config()) as stage:
            (stage.folder / "model.bin").write_text(place)
    with stage_folder("model_pruning", tmp_path / "pruned", config(overwrite=True)):
        pass
    assert (tmp_path / "pruned.old/model.bin").read_text() == "pruned.old"
    visible = [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")]
    assert sorted(visible) == ["pruned", "pruned.old"]


def test_cards_are_not_written_through_a_link(came: Path) -> None:
    for name in ("Modelfile", "card.md"):
        (came / f"{name}.{os.getpid()}.partial").symlink_to(came.parent / "victim")
    write_text(came / "Modelfile", "FROM x")
    write_card(came / "card.md", "title", [])
    assert (came.parent / "victim").read_bytes() == PRECIOUS
    assert not (came / "Modelfile").is_symlink() and not (came / "card.md").is_symlink()
