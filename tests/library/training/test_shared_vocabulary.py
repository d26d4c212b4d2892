"""A full teacher of a trimmed student: its probabilities at the student's ids, exactly."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_bpe
import torch
from running import refused, succeeds
from tiny_folders import swap_two_tokens, write_tiny_llama
from transformers import AutoModelForCausalLM

from slimtune.config import Config
from slimtune.errors import InputError
from slimtune.export.gguf_writer import write_gguf
from slimtune.models import tokenizers
from slimtune.models.vocabulary_map import MAP_FILE
from slimtune.prompts import IGNORED
from slimtune.training import teacher_cache, teacher_places, teachers
from slimtune.training.batches import Sample, collate
from slimtune.training.shared_vocabulary import OtherVocabulary, ids_in_teacher

MODELS = {
    "sentencepiece": write_tiny_llama,
    "tied": lambda at: tiny_bpe.write_bpe_llama(at, "qwen2", family="qwen2", **TIED),
}
TIED = {"tie_word_embeddings": True}
ROW = [
    {"role": "user", "content": "The cat sat on the mat?"},
    {"role": "assistant", "content": "今天天气很好 12 dogs."},
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Callable[[str], Path]:
    """A kind of tokenizer -> a folder with `teacher`, `rows.jsonl`, and `student`, the teacher with
    fewer tokens."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        MODELS[kind](folder / "teacher")
        lines = [json.dumps({"messages": ROW})] * 12
        (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
        trimmed(folder, "teacher", "student")
        write_gguf(folder / "teacher", folder / "teacher.gguf", "F32")
        return folder

    return make


@pytest.fixture(params=MODELS)
def world(request, worlds) -> Path:
    return worlds(request.param)


@pytest.fixture
def tied(worlds) -> Path:
    """One kind, for what takes seconds."""
    return worlds("tied")


def trimmed(world: Path, model: str, output: str, *more: str) -> Path:
    words = ("--model-path", world / model, "--output-dir", world / output, "--ffn-ratio", 0)
    words += ("--train-data", world / "rows.jsonl", "--vocabulary", "trim", *more)
    words += ("--criterion", "magnitude", "--calibration", "none")
    succeeds("model_pruning", *words)
    return world / output


def settings(world: Path, **distillation: object) -> Config:
    given = {"teacher_model": str(world / "teacher"), "cache_dir": world / "cache"}
    given |= {"temperature": 2.0, "top_k": 5}
    config = Config.model_validate({"model": {"device": "cpu"}})
    changed = config.distillation.model_copy(update=given | distillation)
    return config.model_copy(update={"distillation": changed})


def samples_of(student: Path) -> list[Sample]:
    ids = tokenizers.load_tokenizer(student)("The cat sat on 12 dogs, 今天天气").input_ids
    rows = [ids, ids[3:], list(range(20, 50))]
    return [
        Sample(row, [IGNORED, IGNORED, *row[2:]], index=index) for index, row in enumerate(rows)
    ]


def meant(world: Path, sample: Sample, temperature: float) -> torch.Tensor:
    """By transformers alone: the teacher reads the old ids, what it says of kept ones is scaled."""
    kept = json.loads((world / "student" / MAP_FILE).read_text())["kept"]
    model = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[kept[id] for id in sample.input_ids]])).logits[0, 1:-1]
    said = (logits / temperature).softmax(-1)[:, kept]
    return said / said.sum(1, keepdim=True)


def said(world: Path, config: Config, samples: list[Sample], student: Path) -> list:
    teacher = teachers.choose(config, samples, str(student))
    found = []
    for sample in samples:
        batch = collate([sample])
        positions = (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(1)
        found.append(teacher.says(batch, positions)(slice(None)))
    return found


def test_online_every_probability_is_the_teachers_among_the_tokens_left(world) -> None:
    samples, student = samples_of(world / "student"), world / "student"
    for sample, told in zip(
        samples, said(world, settings(world, mode="online"), samples, student), strict=True
    ):
        expected = meant(world, sample, 2.0)
        assert told.ids.shape == expected.shape
        torch.testing.assert_close(told.log_probabilities.exp(), expected, rtol=1e-4, atol=1e-6)


def test_the_cache_holds_the_likeliest_of_the_tokens_left(world) -> None:
    samples, student = samples_of(world / "student"), world / "student"
    for sample, told in zip(samples, said(world, settings(world), samples, student), strict=True):
        top = meant(world, sample, 2.0).topk(5)
        torch.testing.assert_close(told.log_probabilities.exp(), top.values, rtol=2e-3, atol=1e-4)
        assert (told.ids == top.indices).float().mean() > 0.95  # two may be as likely in float16


def test_a_teacher_trimmed_by_the_same_map_says_the_same(world) -> None:
    samples, student = samples_of(world / "student"), world / "student"
    own = settings(world, mode="online", teacher_model=str(student))
    both = (
        said(world, settings(world, mode="online"), samples, student),
        said(world, own, samples, student),
    )
    for full, cut in zip(*both, strict=True):
        torch.testing.assert_close(full.log_probabilities, cut.log_probabilities)


def test_the_map_is_a_part_of_the_caches_name(world, tmp_path) -> None:
    samples, config = samples_of(world / "student"), settings(world)
    ids = ids_in_teacher(str(world / "teacher"), str(world / "student"))
    other = [*ids[:-2], ids[-1], ids[-2]]
    names = {teachers.cache_folder(config, samples, some) for some in (None, ids, other)}
    assert len(names) == 3
    assert teachers.cache_folder(config, samples, list(ids)) in names


def test_the_pieces_decide_and_not_the_folders_names(world, tmp_path) -> None:
    student = world / "student"
    ids = ids_in_teacher(str(world / "teacher"), str(student))
    moved = shutil.copytree(world / "teacher", tmp_path / "moved")
    assert ids_in_teacher(str(moved), str(student)) == ids
    assert ids_in_teacher(str(student), str(student)) is None
    if (moved / "tokenizer.model").is_file():
        other = swap_two_tokens(shutil.copytree(student, tmp_path / "swapped"))
        with pytest.raises(InputError, match="different vocabularies") as error:
            ids_in_teacher(str(moved), str(other))
        assert "2 tokens" in str(error.value)


def test_a_student_trimmed_twice_knows_the_first_ids(tied) -> None:
    wide = trimmed(tied, "teacher", "wide", "--languages", "en")
    narrow = trimmed(tied, "wide", "narrow")
    direct = ids_in_teacher(str(tied / "teacher"), str(narrow))
    on_the_way = ids_in_teacher(str(wide), str(narrow))
    first = ids_in_teacher(str(tied / "teacher"), str(wide))
    assert [first[id] for id in on_the_way] == direct
    assert len(direct) < len(first)


def test_without_the_record_it_is_refused_with_its_cure(tied, tmp_path) -> None:
    bare = shutil.copytree(tied / "student", tmp_path / "bare")
    (bare / MAP_FILE).unlink()
    with pytest.raises(InputError, match="different vocabularies") as error:
        ids_in_teacher(str(tied / "teacher"), str(bare))
    assert MAP_FILE in error.value.why and "--vocabulary trim" in error.value.cure


@pytest.mark.parametrize(
    "kept", ["[]", '"all"', "[0, 2, 1]", "[0, true]", "[-1, 0]", "[0, 10000000000]", "[1, 1]"]
)
def test_a_record_of_a_stranger_is_refused(kept, tied, tmp_path) -> None:
    odd = shutil.copytree(tied / "student", tmp_path / "odd")
    (odd / MAP_FILE).write_text(f'{{"tokens_before": 400, "kept": {kept}}}')
    with pytest.raises(InputError, match=MAP_FILE):
        ids_in_teacher(str(tied / "teacher"), str(odd))


def test_distilled_by_the_full_teacher_and_the_record_goes_along(tied, tmp_path) -> None:
    words = ("--student-model", tied / "student", "--teacher-model", tied / "teacher")
    words += ("--train-data", tied / "rows.jsonl", "--text-data", "null", "--device", "cpu")
    words += ("--cache-dir", tmp_path / "cache", "--epochs", 1, "--learning-rate", "1e-3")
    succeeds("knowledge_distillation", *words, "--output-dir", tmp_path / "whole")
    more = ("--student", "lora", "--lora-r", 2, "--mode", "online")
    succeeds("knowledge_distillation", *words, *more, "--output-dir", tmp_path / "merged")
    record = (tied / "student" / MAP_FILE).read_bytes()
    for name in ("whole", "merged"):
        assert (tmp_path / name / MAP_FILE).read_bytes() == record
        AutoModelForCausalLM.from_pretrained(tmp_path / name)
    (part,) = (tmp_path / "cache").glob("*/part-*.safetensors")
    assert teacher_cache.is_complete(part.parent)


def test_a_record_that_was_changed_is_found_by_its_sum(tied, tmp_path) -> None:
    odd = shutil.copytree(tied / "student", tmp_path / "odd")
    content = json.loads((odd / MAP_FILE).read_text())
    content["kept"][-1] -= 1
    (odd / MAP_FILE).write_text(json.dumps(content))
    words = ("--student-model", odd, "--teacher-model", tied / "teacher", "--dry-run")
    words += ("--train-data", tied / "rows.jsonl", "--text-data", "null")
    refused(3, f"{MAP_FILE}: not as model_pruning left it", "knowledge_distillation", *words)


# A teacher in a file


def test_a_gguf_speaks_of_the_tokens_left_too(world) -> None:
    file, student = world / "teacher.gguf", world / "student"
    ids = ids_in_teacher(str(world / "teacher"), str(student))
    assert ids_in_teacher(str(file), str(student)) == ids
    samples, config = samples_of(student), settings(world, teacher_model=str(file))
    assert teacher_places.with_mode(config, str(student)) is config
    for sample, told in zip(samples, said(world, config, samples, student), strict=True):
        expected = meant(world, sample, 2.0)
        # llama.cpp's cache has 16 bits: two that are as likely change places.
        theirs = expected.gather(1, told.ids)
        torch.testing.assert_close(told.log_probabilities.exp(), theirs, rtol=0.02, atol=1e-4)
        best = expected.topk(5).values
        torch.testing.assert_close(told.log_probabilities.exp(), best, rtol=0.02, atol=1e-4)


def test_a_gguf_that_was_trimmed_has_the_students_own_ids(tied, tmp_path) -> None:
    write_gguf(tied / "student", tmp_path / "student.gguf", "F32")
    assert ids_in_teacher(str(tmp_path / "student.gguf"), str(tied / "student")) is None
    with pytest.raises(OtherVocabulary, match="its vocabulary is another") as error:
        ids_in_teacher(str(tmp_path / "student.gguf"), str(tied / "teacher"))
    assert "--mode sequence" in error.value.cure


@pytest.mark.parametrize("record", ["none", "of another"])
def test_a_gguf_that_no_record_leads_to_writes_answers(record, tied, tmp_path, caplog) -> None:
    odd, file = shutil.copytree(tied / "student", tmp_path / "odd"), tied / "teacher.gguf"
    content = json.loads((odd / MAP_FILE).read_text())
    (odd / MAP_FILE).unlink()
    if record == "of another":
        content["kept"] = [*content["kept"][:-1], content["tokens_before"] + 3]
        content["tokens_before"] += 4
        (odd / MAP_FILE).write_text(json.dumps(content))
    with pytest.raises(OtherVocabulary):
        ids_in_teacher(str(file), str(odd))
    caplog.set_level("INFO", "slimtune")
    config = settings(tied, teacher_model=str(file))
    assert teacher_places.with_mode(config, str(odd)).distillation.mode == "sequence"
    assert "its vocabulary is another: " in caplog.text


def test_distilled_by_a_full_gguf(tied, tmp_path, caplog) -> None:
    caplog.set_level("INFO", "slimtune")
    words = ("--student-model", tied / "student", "--teacher-model", tied / "teacher.gguf")
    words += ("--train-data", tied / "rows.jsonl", "--text-data", "null", "--device", "cpu")
    words += ("--cache-dir", tmp_path / "cache", "--epochs", 1, "--learning-rate", "1e-3")
    succeeds("knowledge_distillation", *words, "--output-dir", tmp_path / "out")
    left = len(json.loads((tied / "student" / MAP_FILE).read_text())["kept"])
    assert f"asked of the {left} tokens that the student has" in caplog.text
    (part,) = (tmp_path / "cache").glob("*/part-*.safetensors")
    assert teacher_cache.is_complete(part.parent)
