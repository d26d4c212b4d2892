"""An adapter as a file of its own: written beside its base, compared, talked to, refused."""

import json
import shutil
from pathlib import Path

import pytest
from running import refused, succeeds
from tiny_folders import write_tiny_llama
from tiny_ggufs import put_into_ollama

from slimtune import prompts
from slimtune.export.proof import verify
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers

QUESTIONS = {
    "What did the cat do on day 99?": "The cat sat on the mat.",
    "第99天天气怎么样？": "今天天气很好。",
}


@pytest.fixture(scope="module")
def beside(project, adapter, settings, tmp_path_factory) -> tuple[Path, object]:
    """The folder of an adapter written beside two types of its base, and what the script said."""
    folder = tmp_path_factory.mktemp("beside")
    flags = ("--model-path", project / "base", "--lora-model", adapter, "--lora-as", "adapter")
    flags += ("--quantization", "F16,Q4_0", "--output-dir", folder)
    return folder, succeeds("convert_to_gguf", *settings, *flags)


def test_an_adapter_beside_its_base_answers_as_the_fine_tuned_model(
    beside, settings, merged
) -> None:
    folder, ran = beside
    told = [line.split() for line in ran.out.splitlines() if line.startswith("wrote")]
    assert {Path(file).name for _, file in told} == {
        "base-F16.gguf",
        "base-Q4_0.gguf",
        "tiny-lora-F16.gguf",
    }
    pairs = [f"{folder}/base-{kind}.gguf+{folder}/tiny-lora-F16.gguf" for kind in ("F16", "Q4_0")]
    assert ran.out.endswith(
        f"next:  python finetune/evaluate_model.py {' '.join(map(str, settings))} "
        f"--models {','.join(pairs)}\n"
        f"       llama-server -m {folder}/base-F16.gguf --lora {folder}/tiny-lora-F16.gguf\n"
    )
    tokenizer = tokenizers.load_tokenizer(merged)
    template = prompts.template("llama2")
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    ids = [prompts.encode_prompt(tokenizer, messages, template) for messages in asked]
    lora = folder / "tiny-lora-F16.gguf"
    with LlamaCpp(folder / "base-F16.gguf", adapter=lora, context=128, slots=2) as model:
        answers = [answer.text.strip() for answer in model.generate(ids, Decoding(12))]
    assert answers == list(QUESTIONS.values())


def test_the_proof_of_an_adapter_weighs_it_against_merging_first(beside) -> None:
    folder, ran = beside
    assert "proof on F16: token ids equal on" in ran.out
    assert "what F16 costs" not in ran.out
    (said,) = [line for line in ran.out.splitlines() if "what Q4_0 costs: " in line]
    assert "adapter on this base +" in said and "; merged first +" in said
    proofs = json.loads((folder / "tiny-lora-F16_run.json").read_text())["metrics"]["proofs"]
    assert proofs["F16"]["agreement"] == 1
    assert proofs["F16"]["nll_gguf"] == pytest.approx(proofs["F16"]["nll_reference"], abs=0.005)
    assert 0 < proofs["Q4_0"]["nats_merged_first"] < 1 and "nats_merged_first" not in proofs["F16"]
    assert 0 < proofs["Q4_0"]["agreement_merged_first"] <= 1


def test_a_base_too_coarse_for_an_adapter_is_told_with_the_other_way(
    beside, project, adapter, settings, tmp_path, monkeypatch
) -> None:
    shutil.copytree(beside[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setitem(verify.TOLERANCES, "Q4_0", -1.0)
    flags = ("--model-path", project / "base", "--lora-model", adapter, "--lora-as", "adapter")
    flags += ("--quantization", "Q4_0", "--output-dir", tmp_path, "--model-name", "coarse")
    error = refused(5, "may cost", "convert_to_gguf", *settings, *flags)
    assert "choose a larger type" in error[2] and "without --lora-as adapter" in error[2]
    assert not (tmp_path / "coarse-lora-F16.gguf").exists()
    assert (tmp_path / "coarse-lora-F16.failed-proof.gguf").exists()


def test_a_second_adapter_finds_the_base(beside, project, adapter, settings) -> None:
    folder, _ = beside
    base = folder / "base-F16.gguf"
    before = base.stat().st_mtime_ns
    flags = ("--model-path", project / "base", "--lora-model", adapter, "--lora-as", "adapter")
    flags += ("--quantization", "F16", "--output-dir", folder, "--verify", "off")
    ran = succeeds("convert_to_gguf", *settings, *flags, "--model-name", "second", "--dry-run")
    assert f"base: there already: {base}" in ran.out
    succeeds("convert_to_gguf", *settings, *flags, "--model-name", "second")
    assert base.stat().st_mtime_ns == before and (folder / "second-lora-F16.gguf").is_file()


def test_an_adapter_with_another_template_brings_it(
    beside, project, adapter, settings, tmp_path
) -> None:
    folder, _ = beside
    other = shutil.copytree(adapter, tmp_path / "lora_adapter")
    (other / "run.json").unlink()
    (other / "chat_template.jinja").write_text(prompts.template("alpaca"), encoding="utf-8")
    flags = ("--model-path", project / "base", "--lora-model", other, "--lora-as", "adapter")
    flags += ("--quantization", "F16", "--output-dir", folder, "--model-name", "other")
    ran = succeeds("convert_to_gguf", *settings, *flags, "--verify", "off")
    file = folder / "other-lora-F16.jinja"
    assert file.read_text(encoding="utf-8") == prompts.template("alpaca")
    assert ran.out.endswith(f"--jinja --chat-template-file {file}\n")


def test_a_base_file_of_another_model_is_not_taken_for_this_one(
    beside, project, adapter, settings, merged, tmp_path
) -> None:
    folder, _ = beside
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "base-F16_run.json"
    run.write_text(run.read_text().replace(str(project / "base"), str(merged)))
    flags = ("--model-path", project / "base", "--lora-model", adapter, "--lora-as", "adapter")
    flags += ("--quantization", "F16", "--output-dir", tmp_path, "--model-name", "second")
    refused(2, "the file of another base", "convert_to_gguf", *settings, *flags)


def test_a_base_file_is_made_again_where_other_weights_lie_under_the_bases_name(
    beside, project, adapter, settings, tmp_path
) -> None:
    """A base of others has no record that would tell; an adapter of others no fingerprint."""
    base = shutil.copytree(project / "base", tmp_path / "base")
    other = shutil.copytree(adapter, tmp_path / "lora_adapter")
    (other / "run.json").unlink()
    (other / "README.md").unlink()
    words = ("convert_to_gguf", *settings, "--model-path", base, "--lora-model", other)
    words += ("--lora-as", "adapter", "--output-dir", tmp_path, "--verify", "off")
    succeeds(*words)
    write_tiny_llama(base, hidden=64, initializer_range=0.1)
    words += ("--model-name", "second")
    error = refused(2, "the file of another base", *words)
    assert "--overwrite" in error[2]


def test_a_modelfile_with_an_adapter_says_until_when_it_works(
    beside, project, adapter, settings, tmp_path, monkeypatch
) -> None:
    folder, _ = beside
    monkeypatch.chdir(tmp_path)
    flags = ("--model-path", project / "base", "--lora-model", adapter, "--lora-as", "adapter")
    flags += ("--quantization", "F16", "--output-dir", folder, "--model-name", "third")
    succeeds("convert_to_gguf", *settings, *flags, "--create-modelfile", "--verify", "off")
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert f'ADAPTER "{folder}/third-lora-F16.gguf"' in text and "0.34.0" in text


def test_an_adapter_file_needs_an_adapter(settings, project, tmp_path) -> None:
    flags = ("--model-path", project / "base", "--lora-as", "adapter", "--output-dir", tmp_path)
    refused(2, "--lora-model", "convert_to_gguf", *settings, *flags)


def exact(metrics_file: Path) -> dict[str, float]:
    """{model: per cent of exact matches}."""
    models = json.loads(metrics_file.read_text())["models"]
    return {one["label"]: one["exact_match"]["score"] for one in models}


def answers_of(metrics_file: Path, label: str) -> list[str]:
    samples = json.loads(metrics_file.read_text())["samples"]
    return [one["answers"][label] for one in samples]


@pytest.mark.usefixtures("in_process")
def test_the_comparison_takes_base_and_adapter_as_one_model(
    beside, settings, adapter, tmp_path, caplog
) -> None:
    folder, _ = beside
    lora = folder / "tiny-lora-F16.gguf"
    models = ",".join(f"{folder}/base-{kind}.gguf+{lora}" for kind in ("F16", "Q4_0"))
    flags = ("--models", f"{models},{folder}/base-F16.gguf", "--output", tmp_path / "r.csv")
    ran = succeeds("evaluate_model", *settings, *flags)
    label, file = "base-F16+tiny-lora-F16", tmp_path / "r_metrics.json"
    scores = exact(file)
    assert scores[label] == scores["fine-tuned"] > 90 > 10 > scores["base-F16"]
    assert answers_of(file, label) == answers_of(file, "fine-tuned")
    assert "base-Q4_0+tiny-lora-F16" in scores
    found = {one["label"]: one for one in json.loads(file.read_text())["models"]}
    bare, both = found["base-F16"]["cost"], found[label]["cost"]
    assert both["bytes_on_disk"] == bare["bytes_on_disk"] + lora.stat().st_size
    assert both["parameters"] == found["fine-tuned"]["cost"]["parameters"]
    assert "not known whether" not in caplog.text and "no effect" not in ran.err
    report = (tmp_path / "training_report.md").read_text(encoding="utf-8")
    assert "| base-F16+tiny-lora-F16 from fine-tuned | +0.0" in report
    run = json.loads((tmp_path / "r_run.json").read_text())
    read = [one["path"] for one in run["inputs"]]
    assert str(lora) in read and str(folder / "base-F16.gguf") in read
    assert all(one["run_id"] for one in run["inputs"] if one["path"] == str(lora))


def test_a_chat_with_base_and_adapter_and_nothing_else(beside, settings, tmp_path) -> None:
    folder, _ = beside
    nowhere = ("--base-model", "./no-base", "--lora-model", "./no-adapter")
    pair = f"{folder}/base-Q4_0.gguf+{folder}/tiny-lora-F16.gguf"
    flags = ("--interactive", "--models", pair, *nowhere)
    ran = succeeds("evaluate_model", *settings, *flags, stdin="And the dogs, at 99 o'clock?\n")
    assert "12 dogs ran over the hill." in ran.out
    assert "chatting with base-Q4_0+tiny-lora-F16" in ran.err
    dry = succeeds("evaluate_model", *settings, *flags, "--dry-run").err
    assert f"{folder}/base-Q4_0.gguf + {folder}/tiny-lora-F16.gguf" in dry


def test_a_base_in_ollamas_store_carries_an_adapter(
    beside, settings, tmp_path, monkeypatch
) -> None:
    """Ollama itself would answer without it: its store is read whether one runs or not."""
    folder, _ = beside
    store = put_into_ollama(tmp_path / "store", "tiny:1", folder / "base-Q4_0.gguf")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    nowhere = ("--base-model", "./no-base", "--lora-model", "./no-adapter")
    flags = ("--interactive", "--models", f"ollama:tiny:1+{folder}/tiny-lora-F16.gguf", *nowhere)
    ran = succeeds("evaluate_model", *settings, *flags, stdin="And the dogs, at 99 o'clock?\n")
    assert "12 dogs ran over the hill." in ran.out
    assert "chatting with tiny-1+tiny-lora-F16" in ran.err


def test_the_adapters_own_template_counts_where_the_base_file_carries_another(
    beside, project, adapter, settings, tmp_path, monkeypatch, caplog
) -> None:
    """Elsewhere, with no record beside them: the two files are all that anybody has."""
    folder, _ = beside
    other = shutil.copytree(adapter, tmp_path / "lora_adapter")
    (other / "run.json").unlink()
    (other / "chat_template.jinja").write_text(prompts.template("alpaca"), encoding="utf-8")
    flags = ("--model-path", project / "base", "--lora-model", other, "--lora-as", "adapter")
    flags += ("--quantization", "F16", "--output-dir", folder, "--verify", "off")
    succeeds("convert_to_gguf", *settings, *flags, "--model-name", "spoken")
    for name in ("base-F16.gguf", "spoken-lora-F16.gguf"):
        shutil.copyfile(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        "slimtune.chat.partner.encode_prompt",
        lambda tokenizer, messages, template, *room: asked.append(template) or [1],
    )
    flags = ("--interactive", "--models", "base-F16.gguf+spoken-lora-F16.gguf")
    succeeds("evaluate_model", *settings, *flags, stdin="Hello?\n")
    assert asked == [prompts.template("alpaca")]
    assert "not known whether it was trained on base-F16.gguf" in caplog.text


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("{0}/base-F16.gguf+nowhere.gguf", "nowhere.gguf: not there"),
        ("nowhere.gguf+{0}/tiny-lora-F16.gguf", "nowhere.gguf: not there"),
        ("{0}/base-F16.gguf+{0}/base-Q4_0.gguf", "base-Q4_0.gguf: no adapter"),
        ("{0}/base-F16.gguf+fake.gguf", "fake.gguf: not a GGUF file"),
        ("{0}/base-F16.gguf+{1}", "a folder, where the file of an adapter is needed"),
        ("{0}/tiny-lora-F16.gguf+{0}/base-F16.gguf", "no model of its own"),
        ("{0}/tiny-lora-F16.gguf", "no model of its own"),
        ("{1}+{0}/tiny-lora-F16.gguf", "no GGUF file, and"),
        ("{2}+{0}/tiny-lora-F16.gguf", "is for another base"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(
    pair, words, dry, beside, adapter, settings, gguf, tmp_path, monkeypatch
) -> None:
    """The last pair: the adapter would be put a second time on the model it was merged into."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.gguf").write_text("no model")
    models = pair.format(beside[0], adapter, gguf)
    flags = ("--models", models, "--output", tmp_path / "out/r.csv", *dry)
    refused(3, words, "evaluate_model", *settings, *flags)
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_a_base_of_another_size(beside, settings, rows, tmp_path) -> None:
    other = write_tiny_llama(tmp_path / "other", hidden=32)
    flags = ("--model-path", other, "--output-dir", tmp_path, "--model-name", "other")
    succeeds("convert_to_gguf", *settings, *flags, "--verify", "off")
    pair = f"{tmp_path}/other-F16.gguf+{beside[0]}/tiny-lora-F16.gguf"
    flags = ("--models", pair, "--output", tmp_path / "out/r.csv")
    error = refused(3, "is for another base", "evaluate_model", *settings, *flags)
    assert "attn_k.weight is 16 x 32 there" in error[1]


def test_an_adapters_file_is_not_written_over(beside, settings, adapter, tmp_path) -> None:
    lora = shutil.copyfile(beside[0] / "tiny-lora-F16.gguf", tmp_path / "r.csv")
    pair = f"{beside[0]}/base-F16.gguf+{lora}"
    flags = ("--models", pair, "--output", lora, "--overwrite")
    refused(2, "would write over it", "evaluate_model", *settings, *flags)
