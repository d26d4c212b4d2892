"""Settings: one reader for file and flags, every mistake named at once, paths where they belong."""

import json
import re
from pathlib import Path

import pytest

from slimtune.config import SCRIPTS, Config
from slimtune.errors import SettingsError
from slimtune.machine.refusals import refusal_of
from slimtune.models.memory import MemoryEstimate, fit_verdict
from slimtune.settings import PROJECT, SettingsErrors, read_settings, written
from slimtune.settings.flags import fields_of, flags_of, less_memory, named
from slimtune.settings.yaml_file import scalar


def config_of(tmp_path: Path, text: str, *flags: str, script: str = "train_lora") -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return read_settings(script, "", ["--config", str(file), *flags])[0]


def mistakes_of(tmp_path: Path, text: str, *flags: str) -> str:
    with pytest.raises(SettingsError) as caught:
        config_of(tmp_path, text, *flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1.5", 1.5), ("7", 7), ("true", True), ("no", "no"), ("null", None)]
    + [("2026-01-01", "2026-01-01"), ("12:30", "12:30"), ("1_000", "1_000"), ("-.5", -0.5)],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_a_number_is_a_number_in_file_and_flag(tmp_path: Path) -> None:
    assert config_of(tmp_path, "training: {learning_rate: 1e-4}").training.learning_rate == 1e-4
    assert config_of(tmp_path, "", "--learning-rate", "1e-4").training.learning_rate == 1e-4


def test_flags_beat_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    config = config_of(tmp_path, "lora: {rank: 4, alpha: 5}", "--lora-r", "2")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (2, 5, 0.0)


def test_all_mistakes_are_named_at_once_with_line_and_suggestion(tmp_path: Path) -> None:
    text = mistakes_of(
        tmp_path, "\nlora: {rnak: 8}\ntraning: {}\n", "--learning-rate", "abc", "--lora-rr", "3"
    )
    assert "config.yaml:2: lora.rnak" in text and "did you mean `rank`" in text
    assert "config.yaml:3: traning" in text and "did you mean `training`" in text
    assert "--learning-rate: abc" in text
    assert "--lora-rr" in text and "did you mean --lora-r?" in text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("lora: {rank: 1, rank: 2}", "written twice"),
        ("lora: 3", "holds no settings"),
        ("lora: [", "cannot be read as YAML"),
        ("training: {epochs: .nan}", "training.epochs"),
        ("data: {validation_ratio: 0.6, test_ratio: 0.6}", "below 1"),
        ("model: {prompt_template: lama2}", "llama2"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, word: str) -> None:
    assert word in mistakes_of(tmp_path, text)


def test_a_missing_settings_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        read_settings("train_lora", "", ["--config", "nowhere.yaml"])


def test_paths_belong_to_the_file_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = config_of(tmp_path, "training: {train_data: a.jsonl}", "--output-dir", "out")
    assert config.training.train_data == tmp_path / "a.jsonl"
    assert config.lora.output_dir == elsewhere / "out"
    assert config.model.base_model == str(tmp_path / "models/sample/base")


def test_a_hub_id_stays_one_unless_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "model: {base_model: meta-llama/Llama-2-7b-chat-hf}"
    assert config_of(tmp_path, text).model.base_model == "meta-llama/Llama-2-7b-chat-hf"
    (tmp_path / "meta-llama/Llama-2-7b-chat-hf").mkdir(parents=True)
    assert config_of(tmp_path, text).model.base_model == str(
        tmp_path / "meta-llama/Llama-2-7b-chat-hf"
    )


def test_a_base_and_its_adapter_are_two_paths(tmp_path: Path) -> None:
    text = "evaluation: {models: [gguf/b.gguf+l.gguf, 'ollama:a:1b+../l.gguf', some/id]}"
    sub = tmp_path / "sub"
    sub.mkdir()
    base, stored, hub = config_of(sub, text, script="evaluate_model").evaluation.models
    assert base == f"{sub}/gguf/b.gguf+{sub}/l.gguf"
    assert stored == f"ollama:a:1b+{tmp_path}/l.gguf"
    assert hub == "some/id"


def test_a_list_is_written_with_commas(tmp_path: Path) -> None:
    config = config_of(tmp_path, "", "--lora-target-modules", "q_proj, v_proj")
    assert config.lora.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_a_script_leads_to_one_setting(script: str) -> None:
    flags = flags_of(script)
    assert len(set(flags.values())) == len(flags) == len(list(fields_of(script)))


def test_flags_of_the_guide() -> None:
    assert flags_of("knowledge_distillation")["epochs"] == ("distillation", "epochs")
    assert flags_of("train_pruned_distilled")["epochs"] == ("training", "epochs")
    assert flags_of("evaluate_model")["output-dir"] == ("evaluation", "merged_dir")
    assert flags_of("convert_to_gguf")["model-path"] == ("gguf", "model_path")
    assert flags_of("train_lora")["use-quantization"] == ("model", "quantization")


def test_the_shipped_config_is_the_rendered_schema() -> None:
    cure = "run python -m slimtune.settings from finetune/"
    shipped = (PROJECT / "config.yaml").read_text(encoding="utf-8")
    assert shipped == written.config_yaml(Config()), cure
    schema = (PROJECT / "config.schema.json").read_text(encoding="utf-8")
    assert schema == written.schema_json(), cure
    assert "lora" in json.loads(schema)["properties"]


def test_the_printed_config_reads_back_as_it_was(tmp_path: Path) -> None:
    config = config_of(tmp_path, "", "--lora-r", "3", "--val-data", "v.jsonl")
    printed = written.config_yaml(config, script="train_lora")
    assert "gguf:" not in printed
    again = config_of(tmp_path, printed)
    assert (again.lora, again.training, again.model) == (config.lora, config.training, config.model)


def test_a_section_called_like_a_flag_of_its_own_can_be_one_word(tmp_path: Path) -> None:
    """`generation: base`, as `--generation base`; the editor's schema knows it."""
    for text, flags in (("generation: base", ()), ("", ("--generation", "base"))):
        assert config_of(tmp_path, text, *flags).generation.source == "base"
    text = "generation: {source: base, temperature: 0.5}"
    assert config_of(tmp_path, text, "--generation", "settings").generation.source == "settings"
    said = mistakes_of(tmp_path, "model: {device: cpu}\ngeneration: bse")
    assert "config.yaml:2: bse is no generation.source" in said and "settings, or base" in said
    assert "lora holds no settings" in mistakes_of(tmp_path, "lora: base")
    schema = json.loads(written.schema_json())
    kinds = [one["$ref"] for one in schema["properties"]["generation"]["anyOf"]]
    assert kinds[1] == f"{kinds[0]}/properties/source"


@pytest.mark.parametrize("script", SCRIPTS)
def test_cures_name_the_flags_of_the_script_that_runs(script, monkeypatch) -> None:
    """--learning-rate is the adapter's in one script, the student's in another."""
    monkeypatch.setattr("sys.argv", [f"finetune/{script}.py"])
    own = {f"--{flag}" for flag in flags_of(script)}
    out_of_memory = str(refusal_of(MemoryError("no"), cure=less_memory()))
    verdict = fit_verdict(MemoryEstimate(weights=9), 1)
    said = [less_memory(), out_of_memory.replace("--dry-run", ""), verdict]
    for setting in ("training.learning_rate", "distillation.learning_rate", "model.dtype"):
        section, name = setting.split(".")
        flag = named(setting)
        if flag.startswith("--"):
            assert flags_of(script)[flag[2:]] == (section, name)
        else:
            assert flag == f"{setting} in config.yaml"
            assert (section, name) not in flags_of(script).values()
    assert set(re.findall(r"--[a-z-]+", " ".join(said))) <= own


def test_each_script_knows_its_own_learning_rate(monkeypatch) -> None:
    for script, adapter, student in (
        ("train_lora", "--learning-rate", "distillation.learning_rate in config.yaml"),
        ("knowledge_distillation", "training.learning_rate in config.yaml", "--learning-rate"),
        ("train_pruned_distilled", "--learning-rate", "--distillation-learning-rate"),
    ):
        monkeypatch.setattr("sys.argv", [f"{script}.py"])
        assert named("training.learning_rate") == adapter
        assert named("distillation.learning_rate") == student


def test_a_value_that_fits_no_type_is_one_mistake(tmp_path) -> None:
    with pytest.raises(SettingsErrors) as caught:
        config_of(tmp_path, "training: {batch_size: many, learning_rate: fast}")
    assert len(caught.value.mistakes) == 2
    assert all(mistake.why.endswith(", or auto") for mistake in caught.value.mistakes)


def test_a_teacher_to_be_chosen_is_no_folder(tmp_path) -> None:
    for text in ("distillation: {epochs: 1}", "distillation: {teacher_model: auto}"):
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        arguments = ["--config", str(tmp_path / "config.yaml")]
        config, _ = read_settings("knowledge_distillation", "doc", arguments)
        assert (config.distillation.teacher_model, config.distillation.text_data) == ("auto",) * 2
