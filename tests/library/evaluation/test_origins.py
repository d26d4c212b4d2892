"""What a model was made from and its original, from the records that stages leave."""

from pathlib import Path

import pytest

from slimtune.artifacts import stage_files, stage_folder
from slimtune.config import Config, Options
from slimtune.evaluation.origins import Origin, originals_first, origins_of
from slimtune.inference.questions import Candidate

FILES = {"train_lora": "adapter_config.json"}


def made(stage: str, folder: Path, *inputs: Path) -> Path:
    """A folder as a stage leaves it; what train_lora leaves is an adapter."""
    config = Config()
    config._options = Options(overwrite=True)
    with stage_folder(stage, folder, config, inputs=inputs) as one:
        (one.folder / FILES.get(stage, "model.safetensors")).write_text("{}")
    return folder


def gguf(file: Path, *inputs: Path) -> Path:
    manifest = file.with_name(f"{file.stem}_run.json")
    with stage_files("convert_to_gguf", manifest, Config(), outputs=[file], inputs=inputs) as stage:
        (stage.folder / file.name).write_text("GGUF")
    return file


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """The pipeline's folders: base, adapter, merged, pruned, distilled, Q4."""
    base, rows = tmp_path / "base", tmp_path / "rows.jsonl"
    base.mkdir()
    rows.write_text("")
    adapter = made("train_lora", tmp_path / "adapter", base, rows)
    merged = made("merge", tmp_path / "merged", adapter, base)
    pruned = made("model_pruning", tmp_path / "pruned", merged)
    distilled = made("knowledge_distillation", tmp_path / "distilled", pruned, merged, rows)
    q4 = gguf(tmp_path / "q4.gguf", merged)
    paths = (base, adapter, merged, pruned, distilled, q4)
    return {path.stem: path for path in paths}


def candidates(places: dict[str, Path], *labels: str) -> list[Candidate]:
    """Of folders by their names; "tuned" is the base with the adapter on top."""
    base, adapter = str(places["base"]), str(places["adapter"])
    return [
        Candidate(one, base, adapter)
        if one == "tuned"
        else Candidate(one, str(places.get(one, one)))
        for one in labels
    ]


def told(places: dict[str, Path], *labels: str) -> dict[str, tuple[str | None, str | None]]:
    found = origins_of(candidates(places, *labels))
    return {label: (one.made_from, one.original) for label, one in found.items()}


def test_each_model_of_the_pipeline(places):
    assert told(places, "base", "tuned", "merged", "pruned", "distilled", "q4") == {
        "base": (None, None),
        "tuned": ("base", "base"),
        "merged": ("tuned", "tuned"),
        "pruned": ("merged", "tuned"),
        "distilled": ("pruned", "tuned"),
        "q4": ("merged", "tuned"),
    }


def test_a_model_that_is_not_compared_is_passed_over(places):
    assert told(places, "base", "distilled", "q4") == {
        "base": (None, None),
        "distilled": ("base", "base"),
        "q4": ("base", "base"),
    }
    assert told(places, "merged", "distilled", "q4")["distilled"] == ("merged", "merged")
    assert told(places, "tuned", "q4")["q4"] == ("tuned", "tuned")


def test_learning_on_the_way_makes_it_another_model(places):
    """The base is what q4 was made from at last, but it shall not answer like the base."""
    small = made("train_lora", places["base"].with_name("again"), places["distilled"])
    places |= {"again": small, "final": made("merge", small.with_name("final"), small,
                                             places["distilled"])}  # fmt: skip
    found = told(places, "merged", "distilled", "final")
    assert found["distilled"] == ("merged", "merged")
    assert found["final"] == ("distilled", "merged")  # the first model's, for want of another
    places["finals"] = gguf(small.with_name("finals.gguf"), places["final"])
    assert told(places, "merged", "final", "finals")["finals"] == ("final", "final")


def test_strangers_are_compared_with_the_first_models_original(places, tmp_path):
    assert told(places, "base", "hub/name") == {"base": (None, None), "hub/name": (None, "base")}
    found = told(places, "q4", "merged", "hub/name")
    assert found == {
        "q4": ("merged", "merged"),
        "merged": (None, None),
        "hub/name": (None, "merged"),
    }


def test_a_model_written_again_is_another_one(places):
    made("merge", places["merged"], places["adapter"], places["base"])
    assert told(places, "base", "merged", "q4")["q4"] == (None, "base")


def test_an_export_that_merges_on_its_way(places):
    file = gguf(places["q4"].with_name("both.gguf"), places["base"], places["adapter"])
    places["both"] = file
    assert told(places, "base", "tuned", "both")["both"] == ("tuned", "tuned")
    assert told(places, "base", "both")["both"] == ("base", "base")


def test_the_file_of_an_adapter_is_what_its_folder_was(places):
    """Whatever file of the base it is put on."""
    file = gguf(places["q4"].with_name("lora.gguf"), places["adapter"], places["base"])
    under = gguf(places["q4"].with_name("base-q4.gguf"), places["base"])
    found = {}
    for known in (["base", "tuned"], ["base"]):
        asked = [*candidates(places, *known), Candidate("both", str(under), str(file))]
        found[len(known)] = origins_of(asked)["both"]
    assert found == {2: Origin("tuned", "tuned"), 1: Origin("base", "base")}


def test_what_a_server_runs_has_no_origin(places):
    server = Candidate("served", "http://127.0.0.1:8080/v1#name")
    for asked in ([server, *candidates(places, "merged", "q4")],
                  [*candidates(places, "merged", "q4"), server]):  # fmt: skip
        found = origins_of(asked)
        assert found["served"] == Origin() and found["q4"] == Origin("merged", "merged")
    assert origins_of([server, *candidates(places, "base", "tuned")])["tuned"] == Origin("base")


def test_originals_are_asked_first(places):
    asked = candidates(places, "q4", "pruned", "base", "merged", "tuned")
    order = [one.label for one in originals_first(asked, origins_of(asked))]
    assert order == ["tuned", "q4", "pruned", "base", "merged"]


def test_records_that_go_round_in_a_circle_end(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    made("model_pruning", one, two)
    two.rmdir()
    made("model_pruning", two, one)
    assert origins_of([Candidate("one", str(one))]) == {"one": Origin()}
    both = [Candidate("one", str(one)), Candidate("two", str(two))]
    found = origins_of(both)
    assert [origin.original for origin in found.values()] == [None, None]
    assert originals_first(both, found) == both
