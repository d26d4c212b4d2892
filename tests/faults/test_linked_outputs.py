"""An output that is a link stays one: to a folder it is followed, to a file refused."""

from pathlib import Path

import pytest
from hostile import everything

from slimtune.artifacts import require, stage_files, stage_folder
from slimtune.artifacts.files import replacing
from slimtune.config import Config, Options
from slimtune.errors import SettingsError

pytestmark = pytest.mark.faults


def config(**options: bool) -> Config:
    settings = Config()
    settings._options = Options(**options)
    return settings


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """`out`, which leads to a folder of another disk."""
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "out").symlink_to(tmp_path / "disk" / "model")
    return tmp_path / "here" / "out"


def write(final: Path, content: str, **options: bool) -> None:
    with stage_folder("model_pruning", final, config(**options)) as stage:
        (stage.folder / "weights").write_text(content)


def test_what_a_link_leads_to_is_written_whole_and_again(link: Path) -> None:
    write(link, "first")
    require(link)
    write(link, "second", overwrite=True)
    require(link)
    assert link.is_symlink() and (link / "weights").read_text() == "second"
    real = link.resolve()
    assert real.parent.name == "disk" and not real.is_symlink()
    # The work was done on the disk that the link leads to, and nothing of it is left.
    visible = [path.name for path in real.parent.iterdir() if not path.name.startswith(".")]
    assert visible == ["model"] and [path.name for path in link.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"dry_run": True}])
def test_a_link_to_what_no_stage_wrote_is_refused(link: Path, flags: dict) -> None:
    """It may have come with somebody's folder: --overwrite is for the output, not for a home."""
    (link / "thesis").write_text("years of work")
    before = everything(link.parents[1])
    with pytest.raises(SettingsError, match="no stage wrote"):
        write(link, "x", **flags)
    assert everything(link.parents[1]) == before


@pytest.mark.parametrize("name", ["rows", "n_run.json"])
@pytest.mark.parametrize("target", ["thesis", "nowhere"])
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / target)
    manifest, outputs = tmp_path / "out" / "n_run.json", [tmp_path / "out" / "rows"]
    with pytest.raises(SettingsError, match="a link stands there"):  # noqa: SIM117
        with stage_files("x", manifest, config(overwrite=True), outputs=outputs):
            raise AssertionError("the work began")
    assert (tmp_path / "out" / name).is_symlink()
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_a_card_beside_the_outputs_replaces_no_link(tmp_path: Path) -> None:
    (tmp_path / "card.md").symlink_to(tmp_path / "thesis")
    with pytest.raises(SettingsError, match="a link stands there"), replacing(tmp_path / "card.md"):
        raise AssertionError("the work began")
    assert (tmp_path / "card.md").is_symlink()
