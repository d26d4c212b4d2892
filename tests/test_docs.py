"""The documents say what is there: commands parse, links lead somewhere, both languages agree.

Every command of the documents, of the scripts' docstrings and of quickstart.py is read by the
settings reader that the script itself uses, values included; nothing is run.
"""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from documents import BLOCK, ROOT, TWINS, prose_of, text_of

from slimtune.config import SCRIPTS, Config
from slimtune.models.family import FAMILIES, families_in_words
from slimtune.settings import read_settings
from slimtune.settings.flags import section_fields

DOCUMENTS = [ROOT / f"{name}{language}.md" for name in TWINS for language in ("", ".zh-CN")]
SHIPPED = [*DOCUMENTS, ROOT / "quickstart.py", *(ROOT / f"finetune/{name}.py" for name in SCRIPTS)]
COMMANDS_OF_THE_QUICK_START = 11  # those that must work as they stand

_COMMAND = re.compile(r'python (finetune/\w+\.py[^\n&"]*)')
_LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)[^)]*\)")
_SETTING = re.compile(rf"\b({'|'.join(Config.model_fields)})\.([a-z_]+)\b")
_CODE = re.compile(r"`([^`\n]+)`")
_HOSTS = re.compile(r"pypi|pythonhosted|anaconda|download\.pytorch|tsinghua|aliyun|npmjs", re.I)


def commands_of(file: Path) -> list[list[str]]:
    """[script, flag, value, ...] of each `python finetune/...` command in a file."""
    text = text_of(file)
    if file.parent.name == "finetune":
        text = text.partition("\nfrom ")[0]  # the docstring
    if file.suffix == ".md":
        text = "".join(body for language, body in BLOCK.findall(text) if language == "bash")
    # A docstring writes the backslash that continues a line twice.
    joined = re.sub(r"\\{1,2}\n\s*", " ", text)
    return [shlex.split(command, comments=True) for command in _COMMAND.findall(joined)]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_command_is_one_that_its_script_takes(file: Path) -> None:
    commands = commands_of(file)
    assert commands, f"{file.name} shows no command"
    for script, *arguments in commands:
        assert (ROOT / script).is_file(), f"{file.name}: {script} is not there"
        read_settings(
            Path(script).stem, "", arguments
        )  # raises with the flag or value that is wrong


def test_the_quick_start_shows_every_script_and_quickstart_py_runs_each() -> None:
    shown = commands_of(ROOT / "QUICK_START.md")
    assert {Path(script).stem for script, *_ in shown} == set(SCRIPTS)
    assert len(shown) >= COMMANDS_OF_THE_QUICK_START
    assert {Path(script).stem for script, *_ in commands_of(ROOT / "quickstart.py")} == set(SCRIPTS)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_link_and_every_script_named_is_there(file: Path) -> None:
    links = [link for link in _LINK.findall(text_of(file)) if "://" not in link]
    names = [word for code in _CODE.findall(prose_of(file)) for word in code.split()]
    named = [name for name in names if name.endswith((".py", ".sh", ".yaml"))]
    assert links
    for name in [*links, *named, "requirements.txt"]:
        assert (ROOT / name).exists() or (ROOT / "finetune" / name).exists(), name


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_setting_named_is_in_the_schema(file: Path) -> None:
    named = [pair for code in _CODE.findall(prose_of(file)) for pair in _SETTING.findall(code)]
    assert named
    for section, field in named:
        assert field in section_fields(section), f"{file.name}: {section}.{field}"


@pytest.mark.parametrize("name", TWINS)
def test_both_languages_have_the_same_headings_and_the_same_code(name: str) -> None:
    english, chinese = ROOT / f"{name}.md", ROOT / f"{name}.zh-CN.md"
    assert levels(english) == levels(chinese)
    blocks = [BLOCK.findall(without_language(text_of(one))) for one in (english, chinese)]
    assert blocks[0] == blocks[1]
    assert rows_of_tables(english) == rows_of_tables(chinese)
    assert sorted(settings_of(english)) == sorted(settings_of(chinese))
    assert chinese.name in text_of(english) and english.name in text_of(chinese)


def without_language(text: str) -> str:
    """Commands as both languages have them: Chinese ones ask for Chinese reports."""
    return text.replace(" --language zh", "")


REPORTING = {"prepare_data", "evaluate_model"}  # they write reports, which have a language
SILENT = {"--interactive", "--merge", "--dry-run"}  # no report comes of it


@pytest.mark.parametrize("name", TWINS)
def test_the_chinese_documents_ask_for_chinese_reports(name: str) -> None:
    for script, *arguments in commands_of(ROOT / f"{name}.zh-CN.md"):
        reports = Path(script).stem in REPORTING and not SILENT & set(arguments)
        assert ("--language" in arguments) is reports, [script, *arguments]


def levels(file: Path) -> list[int]:
    """The depth of each heading, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", prose_of(file), re.MULTILINE)]


def rows_of_tables(file: Path) -> int:
    return len(re.findall(r"^\|", prose_of(file), re.MULTILINE))


def settings_of(file: Path) -> set[tuple[str, str]]:
    return set(_SETTING.findall(prose_of(file)))


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_a_version_to_install_is_the_pinned_one(file: Path) -> None:
    pins = text_of(ROOT / "requirements.txt")
    pins += text_of(ROOT / "tests/requirements-without-dependencies.txt")
    named = set(re.findall(r"\b[\w-]+==[\d.]*\d", text_of(file)))
    assert file.name.startswith("README") or named
    for one in named:
        assert re.search(rf"(?<![\w-]){re.escape(one)}\b", pins), one


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_no_package_registry_is_named(file: Path) -> None:
    assert not _HOSTS.search(text_of(file))


def test_a_yaml_block_of_the_quick_start_is_a_settings_file(tmp_path: Path) -> None:
    blocks = dict(BLOCK.findall(text_of(ROOT / "QUICK_START.md")))
    file = tmp_path / "config.yaml"
    file.write_text(blocks["yaml"], encoding="utf-8")
    config, _ = read_settings("train_lora", "", ["--config", str(file)])
    assert config.training.learning_rate == 2e-4
    assert config.training.activation_checkpointing
    assert config.model.base_model == "meta-llama/Llama-2-7b-chat-hf"


def test_what_is_promised_is_promised_in_both_languages() -> None:
    english, chinese = ROOT / "SECURITY.md", ROOT / "SECURITY.zh-CN.md"
    assert levels(english) == levels(chinese)
    points = [text_of(file).count("\n- **") for file in (english, chinese)]
    assert points[0] == points[1] > 8
    assert sorted(_CODE.findall(text_of(english))) == sorted(_CODE.findall(text_of(chinese)))
    for name in re.findall(r"`(tests/[\w./]+)`", text_of(english)):
        assert (ROOT / name).exists(), name


CHINESE = [*ROOT.glob("*.zh-CN.md"), ROOT / "finetune/training_report.zh-CN.md"]
CHINESE += [ROOT / f"finetune/slimtune/report/{name}.yaml" for name in ("words", "measures")]
_HAN = "[\u4e00-\u9fff]"
# One word for a thing in all of them: what else it might be called -> what it is called.
TERMS = {
    "基础模型|底座|基座(?!模型)": "基座模型",
    "文件夹": "目录",
    "词元|令牌": "token",
    "Hub (?:id|ID|编号|名称)": "Hub 模型名",
    "(?<!参考)答案|应答": "回答",
    "(?:数据|测试|训练|坏|问题)行|(?<!执)行(?:数据|测试|训练)": "条",
    "提示(?!词)|聊天模板": "提示词",
    "奈特|纳特": "nat",
    "精确匹配": "完全匹配",
    "重解": "重新求解（refit）",
    "[指点]名拒绝": "拒绝，并明确指出是哪一项",
    "放到一边": "剔除",
    "杀掉": "终止",
}


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_the_chinese_texts_have_one_word_for_a_thing(file: Path) -> None:
    for other, term in TERMS.items():
        found = re.search(f".{{,12}}(?:{other}).{{,12}}", prose_of(file))
        assert not found, f"{file.name}: …{found[0]}…: {term}"


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_chinese_stands_apart_from_latin_and_has_its_own_punctuation(file: Path) -> None:
    """A space between a Chinese character and a letter or figure; ，：；！？ between Chinese."""
    prose = _CODE.sub("`code`", prose_of(file))
    odd = f"{_HAN}[A-Za-z0-9`]|[A-Za-z0-9`%]{_HAN}|{_HAN}[,;:!?(]|[,;:!?(]{_HAN}"
    found = re.search(f".{{,12}}(?:{odd}).{{,12}}", prose)
    assert not found, f"{file.name}: …{found[0]}…"


def test_the_workflow_names_what_is_there() -> None:
    file = ROOT / ".github/workflows/checks.yml"
    jobs = yaml.safe_load(text_of(file))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    named = re.findall(r"\S+\.(?:py|txt)\b", " ".join(commands))
    assert len(named) > 4
    assert all((ROOT / name).is_file() for name in named)


def test_the_map_has_every_room() -> None:
    """CONTRIBUTING.md: a line for each room, and the files that its recipes name."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    library = ROOT / "finetune/slimtune"
    rooms = {folder.name for folder in library.iterdir() if (folder / "__init__.py").exists()}
    mapped = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert rooms <= mapped, rooms - mapped
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", text)
    assert len(named) > 6
    for name in named:
        assert (library / name).is_file() or (ROOT / name).is_file(), name


sys.path.insert(0, str(ROOT / "benchmarks"))
known_models, picture = map(importlib.import_module, ("known_models", "picture"))
sys.path.remove(str(ROOT / "benchmarks"))
MODELS, HEADERS, table = known_models.MODELS, known_models.HEADERS, known_models.table


@pytest.mark.parametrize(("section", "language"), picture.FILES)
def test_the_readmes_pictures_are_those_that_the_benchmark_draws(
    section: str, language: str
) -> None:
    file = picture.FILES[section, language]
    readme = {"en": "README.md", "zh": "README.zh-CN.md"}[language]
    drawn = text_of(file)
    assert drawn == picture.drawn(section, language)
    assert f"]({file.relative_to(ROOT).as_posix()})" in text_of(ROOT / readme)
    labels = [one["label"] for one in picture.models(section)]
    assert len(labels) > 4 and all(f"{label}" in drawn for label in labels)
    assert drawn.count("<circle") == len(labels)


QUICK_STARTS = {"en": ROOT / "QUICK_START.md", "zh": ROOT / "QUICK_START.zh-CN.md"}


def models_in(language: str) -> list[list[str]]:
    """The cells of a QUICK_START's table of models."""
    lines = text_of(QUICK_STARTS[language]).partition(HEADERS[language] + "\n")[2].splitlines()[1:]
    rows = lines[: lines.index("")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_chinese_readers_find_models_for_chinese_first() -> None:
    made_for_it = {f"`{one.name}`" for one in MODELS if one.chinese}
    first = [name for name, *_ in models_in("zh")][: len(made_for_it)]
    assert made_for_it == set(first)
    assert [one.config["hidden_size"] for one in MODELS if one.chinese][:3] == [1024, 2048, 2560]


@pytest.mark.parametrize("language", QUICK_STARTS)
def test_which_base_is_said_before_the_first_command_on_own_rows(language: str) -> None:
    chapter = re.split(r"^## ", text_of(QUICK_STARTS[language]), flags=re.M)[2]
    before = chapter.partition("python finetune/")[0]
    assert "\n".join(table(language)) in before
    for command in ("`--base-model`", "`--dry-run`", "known_models.py"):
        assert command in before
    assert {one.languages for one in MODELS if one.chinese} == {"qwen2", "qwen3"}


# Parameters as the Hub counts them in each model's safetensors.
COUNTS = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
}


def test_the_sizes_in_the_table_are_those_of_the_models() -> None:
    found = {one.name: one.shape.parameters for one in MODELS}
    assert {name: found[name] for name in COUNTS} == COUNTS
    assert {one.model_type for one in MODELS} == FAMILIES.keys()  # every family has a model


def test_the_guides_list_the_families_of_the_table() -> None:
    *first, last = [family.title for family in FAMILIES.values()]
    chinese = f"{'、'.join(first)} 和 {last}"
    assert f"{families_in_words()} are converted here" in text_of(ROOT / "OPTIMIZATION_GUIDE.md")
    assert f"{chinese} 由本项目转换" in text_of(ROOT / "OPTIMIZATION_GUIDE.zh-CN.md")
    for file in QUICK_STARTS.values():
        section = text_of(file).partition("known_models.py")[0].rpartition("## ")[2]
        for title in (*first, last):
            assert re.search(rf"(?<!\w){title}(?!\w)", section), f"{file.name}: {title}"
