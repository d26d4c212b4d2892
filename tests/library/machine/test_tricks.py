"""The switch and the nesting: off by one variable, and an inner user never undoes an outer."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from running import refused

import slimtune.machine
from slimtune.errors import SettingsError
from slimtune.machine.tricks import SWITCH, TRICKS, Nested, is_on, tricks_off

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def change():
    """A change of the process that writes down when it is made and undone."""
    said = []

    @contextmanager
    def made():
        said.append("made")
        yield
        said.append("undone")

    return Nested(made), said


def test_all_tricks_are_on_by_themselves(monkeypatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert all(is_on(trick) for trick in TRICKS)


@pytest.mark.parametrize("trick", TRICKS)
def test_each_is_turned_off_alone(trick, monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, trick)
    assert [name for name in TRICKS if not is_on(name)] == [trick]


def test_several_are_turned_off_by_a_list(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, " unused_packages, malloc,")
    assert tricks_off() == {"unused_packages", "malloc"}


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "unused_packages,mallok")
    with pytest.raises(SettingsError, match="mallok") as error:
        is_on("unused_packages")
    assert all(trick in error.value.cure for trick in TRICKS)


def test_a_script_with_an_unknown_name_ends_before_it_works(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(SWITCH, "mallok")
    refused(2, "mallok", "create_sample_data", "--output-dir", tmp_path / "models")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trick", TRICKS)
def test_every_trick_is_told_with_its_figure_where_users_look(trick) -> None:
    for guide in ("OPTIMIZATION_GUIDE.md", "OPTIMIZATION_GUIDE.zh-CN.md"):
        text = (ROOT / guide).read_text(encoding="utf-8")
        assert SWITCH in text and f"`{trick}`" in text, guide
    benchmark = TRICKS[trick].rpartition("(")[2].rstrip(")")
    assert (ROOT / benchmark).is_file()
    assert f"`{trick}`" in slimtune.machine.__doc__


def test_the_inner_exit_does_not_undo_the_outer(change) -> None:
    nested, said = change
    with nested.opened():
        with nested.opened():
            pass
        assert said == ["made"]
    assert said == ["made", "undone"]


def test_the_last_to_leave_undoes_it_in_whatever_order(change) -> None:
    nested, said = change
    first, second = nested.opened(), nested.opened()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert said == ["made"]
    second.__exit__(None, None, None)
    assert said == ["made", "undone"]


def test_errors_leave_no_user_behind_and_it_can_be_made_again(change) -> None:
    nested, said = change
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), nested.opened(), nested.opened():
            raise ZeroDivisionError
    assert said == ["made", "undone"] * 2 and nested.users == 0


def test_for_good_outlives_whoever_opens_it_afterwards(change) -> None:
    nested, said = change
    nested.open_for_good()
    with nested.opened():
        pass
    assert said == ["made"]


def test_a_change_that_fails_counts_no_user() -> None:
    @contextmanager
    def failing():
        raise OSError
        yield

    nested = Nested(failing)
    with pytest.raises(OSError), nested.opened():
        pass
    assert nested.users == 0
