"""Every entry of every catalogue has all its parts, and no part lies there without an entry."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from slimtune import prompts
from slimtune.config import Config, catalogues
from slimtune.data import shapes
from slimtune.data.sources import find
from slimtune.evaluation import measures
from slimtune.export import go_template, quant_types
from slimtune.models import memory
from slimtune.pruning import criteria
from slimtune.sample import kinds
from slimtune.settings import PROJECT
from slimtune.settings.flags import section_fields
from slimtune.training import divergences, fitting, initialisation

LIBRARY = Path(catalogues.__file__).parents[1]
CATALOGUES = yaml.safe_load((LIBRARY / "config/catalogues.yaml").read_text(encoding="utf-8"))
# Settings whose choices are a catalogue, and the words that only mean "some" or "all" of it.
SETTINGS = {
    "distillation.divergence": ("divergences", set()),
    "pruning.criterion": ("criteria", set()),
    "pruning.sparsity_pattern": ("sparsity_patterns", set()),
    "pruning.sparsity_method": ("sparsity_methods", set()),
    "data.format_type": ("shapes", {"auto"}),
    "data.input_format": ("file_formats", {"auto"}),
    "data.duplicates": ("duplicates", set()),
    "data.placeholders": ("placeholders", set()),
    "data.several_answers": ("several_answers", set()),
    "data.long_rows": ("long_rows", set()),
    "sample.kind": ("sample_kinds", {"all"}),
    "model.prompt_template": ("templates", {"auto", "tokenizer"}),
    "model.quantization": ("quantizations", set()),
    "distillation.teacher_quantization": ("quantizations", set()),
    "lora.initialisation": ("initialisations", set()),
    "training.optimizer": ("optimizers", set()),
    "training.lr_scheduler": ("lr_schedulers", set()),
    "evaluation.extract": ("patterns", set()),
    "gguf.quantization": ("gguf_types", set()),
}
ROWS = {
    "messages": {"messages": [{"role": "user", "content": "q"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}]},
}


def choices_of(annotation: Any) -> Iterator[str]:
    """The words of a field's `Literal`, wherever in its type."""
    if get_origin(annotation) is Literal:
        yield from (word for word in get_args(annotation) if isinstance(word, str))
        return
    for inner in get_args(annotation):
        yield from choices_of(inner)


def functions_of(module: ModuleType, *parameters: str) -> set[str]:
    """Public functions that a module defines itself, with exactly these parameters."""
    found = set()
    for name, function in inspect.getmembers(module, inspect.isfunction):
        own = function.__module__ == module.__name__ and not name.startswith("_")
        if own and tuple(inspect.signature(function).parameters) == parameters:
            found.add(name)
    return found


def stems(folder: Path, ending: str) -> set[str]:
    return {file.stem for file in folder.glob(f"*.{ending}")}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_choices_and_help_of_a_setting_are_its_catalogue(setting: str) -> None:
    catalogue, others = SETTINGS[setting]
    section, _, name = setting.partition(".")
    field = section_fields(section)[name]
    assert set(choices_of(field.annotation)) == {*catalogues.names(catalogue), *others}
    assert field.description.endswith(catalogues.listed(catalogue))
    for other in others:
        assert other in field.description.replace(catalogues.listed(catalogue), "")
    for line in catalogues.listed(catalogue).splitlines():
        assert f"  # {line}\n" in (PROJECT / "config.yaml").read_text(encoding="utf-8")
    assert catalogues.names(catalogue)[-1] in json.dumps(Config.model_json_schema())


def test_every_catalogue_is_the_choices_of_a_setting() -> None:
    assert {catalogue for catalogue, _ in SETTINGS.values()} == CATALOGUES.keys()


def test_a_divergence_is_a_function() -> None:
    assert functions_of(divergences, "log_p", "log_q") == set(catalogues.names("divergences"))
    for name, function in divergences.DIVERGENCES.items():
        assert function.__name__ == name and "=" in function.__doc__ or "½" in function.__doc__


def test_a_criterion_is_a_function() -> None:
    found = functions_of(criteria, "evidence", "generator")
    assert found == set(catalogues.names("criteria")) == set(criteria.CALIBRATED)
    for name, function in criteria.CRITERIA.items():
        assert criteria.CALIBRATED[name] == ("evidence.flow" in inspect.getsource(function)) or (
            "evidence.slope" in inspect.getsource(function)
        )


def test_a_shape_is_a_function_with_columns_that_are_detected() -> None:
    assert functions_of(shapes, "row") - {"unfolded"} == set(catalogues.names("shapes"))
    for name, columns in shapes.COLUMNS.items():
        assert set(columns) <= set(shapes.KNOWN), name
        row = ROWS.get(name) or dict.fromkeys(columns, "text")
        assert set(row) == set(columns), name
        assert shapes.detect([row]) == name
        assert not any(shapes.has_columns(name, {other: "text"}) for other in ("a", "b"))


@pytest.mark.parametrize("name", catalogues.names("file_formats"))
def test_a_file_format_is_one_that_is_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text('{"question": "q"}\n', encoding="utf-8")
    assert find(file, name)


def test_a_gguf_type_has_a_mixture_and_a_tolerance() -> None:
    types = catalogues.names("gguf_types")
    assert set(types) == set(quant_types.QUANTIZATIONS) == set(quant_types.TOLERANCES)
    for name, meant in quant_types.QUANTIZATIONS.items():
        assert name.startswith(meant.default.name)  # Q4_K_M is made of Q4_K
        assert meant.file_type.name.endswith(name)
        assert 0 < quant_types.TOLERANCES[name] < 1
        assert quant_types.choose_types({"blk.0.attn_q.weight": (256, 256)}, name)


def test_a_pattern_is_a_list_of_expressions_with_one_group() -> None:
    assert tuple(measures.PATTERNS) == catalogues.names("patterns")
    for name, expressions in measures.PATTERNS.items():
        assert bool(expressions) == (name != "whole")
        assert all(expression.groups == 1 for expression in expressions)


def test_an_optimizer_has_bytes_and_a_name_that_transformers_knows() -> None:
    known = {member.value for member in OptimizerNames}
    assert set(memory.OPTIMIZERS) == set(catalogues.names("optimizers"))
    for name, of_bitsandbytes in catalogues.facts("optimizers", "bitsandbytes").items():
        theirs = fitting._NAMES.get(name, name)
        assert theirs in known
        # transformers' own, "adamw_torch", "adafactor" and "sgd", come with torch.
        assert of_bitsandbytes == any(word in name for word in ("bit", "paged", "lion"))
        assert memory.OPTIMIZERS[name] >= 0
    assert set(fitting._NAMES) <= set(catalogues.names("optimizers"))


def test_a_schedule_is_one_that_transformers_knows() -> None:
    known = {member.value for member in SchedulerType}
    assert set(catalogues.names("lr_schedulers")) <= known


def test_a_start_is_peft_s_or_our_own() -> None:
    ours = {"default", "loftq"}
    assert set(initialisation.PEFT_NAMES) | ours == set(catalogues.names("initialisations"))


def test_a_sample_kind_has_a_writer_and_a_file_of_its_own() -> None:
    writers = {name.removeprefix("as_") for name in functions_of(kinds, "file", "rows")}
    assert writers - {"json"} | {"messy"} == set(catalogues.names("sample_kinds"))
    assert len(set(kinds.SAMPLE_FILES.values())) == len(kinds.SAMPLE_FILES)


def test_a_template_has_jinja_a_go_twin_and_stops_that_it_writes() -> None:
    shipped = LIBRARY / "prompts/templates"
    names = set(catalogues.names("templates"))
    assert stems(shipped, "jinja") == stems(shipped, "gotmpl") - {"trim"} == names
    assert set(go_template.STOPS) == names == set(prompts.template_names())
    said = [{"role": role, "content": "words"} for role in ("system", "user", "assistant", "user")]
    for name in names:
        text = prompts.render(said, prompts.template(name), bos_token="<s>", eos_token="</s>")
        assert go_template.STOPS[name], name
        for stop in go_template.STOPS[name]:
            assert stop in text, f"{name} never writes {stop}"


@pytest.mark.parametrize(
    ("catalogue", "file"),
    [
        ("sparsity_methods", "pruning/sparsity.py"),
        ("sparsity_patterns", "pruning/sparsity.py"),
        ("long_rows", "prompts/long_rows.py"),
        ("duplicates", "data/judging.py"),
        ("placeholders", "data/cleaning.py"),
        ("several_answers", "data/shapes.py"),
        ("quantizations", "models/loading.py"),
    ],
)
def test_a_word_without_a_function_is_a_branch_of_its_file(catalogue: str, file: str) -> None:
    """All but one, which is what is left when no other word is asked for."""
    source = (LIBRARY / file).read_text(encoding="utf-8")
    numbers = {name for name in catalogues.names(catalogue) if ":" in name}  # 2:4 is read as N:M
    named = {name for name in catalogues.names(catalogue) if f'"{name}"' in source}
    assert len(catalogues.names(catalogue)) - len(named | numbers) <= 1


def test_a_forgotten_part_is_named() -> None:
    parts = dict(divergences.DIVERGENCES)
    with pytest.raises(LookupError, match=r"lists divergences\.jsd, and there is no jsd in the t"):
        catalogues.bind("divergences", {name: parts[name] for name in parts if name != "jsd"})
    with pytest.raises(LookupError, match=r"no entry divergences\.hellinger"):
        catalogues.bind("divergences", parts | {"hellinger": parts["jsd"]})
    with pytest.raises(LookupError, match=r"gguf_types\.Q3_K must have help, tolerance, and it"):
        catalogues._entries("gguf_types", {"Q3_K": "3 bits"})
