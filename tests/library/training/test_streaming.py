"""A streamed base trains to the bits of one in memory, two layers at a time; auto knows when."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, SHAPE, tiny_samples

from slimtune.config import Config, Distillation, Lora, ModelSection, Options, Training
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.models import loading, mapped, memory, mixed
from slimtune.models.compute import Compute
from slimtune.models.streamed import reader_of
from slimtune.training import (
    automatic,
    callbacks,
    estimates,
    lora,
    streaming,
    teacher_cache,
    teachers,
    timing,
)
from slimtune.training.attention import register
from slimtune.training.fitting import training_arguments
from slimtune.training.trainer import SlimTrainer

LAYERS = 5
ROWS = tiny_samples(18)


def write(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **changes: object
) -> Path:
    """A model of LAYERS layers in several shards."""
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(1)
    shape = SHAPE | extra | {"num_hidden_layers": LAYERS} | changes
    model = model_class(config_class(**shape)).to(dtype)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(write(tmp_path_factory.mktemp("base")))


def adapted(folder: Path, dtype: str, *, streamed: bool, **settings: object) -> torch.nn.Module:
    compute = replace(Compute.choose("cpu", dtype), attention=register(), streamed=streamed)
    chosen = Lora(rank=4, **{"dropout": 0.2} | settings)
    return lora.attach(loading.load_model(folder, compute), chosen, seed=3)


def trained(
    model: torch.nn.Module, folder: Path, *, noise: float = 0.0, **changes: object
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of all steps, those of validation among them, and what was learned."""
    settings = Training(
        **{"batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-2} | changes
    )
    arguments = training_arguments(model, settings, folder, 3, True)
    arguments.logging_steps, arguments.num_train_epochs = 1, 2
    arguments.learning_rate, arguments.load_best_model_at_end = 1e-2, False
    arguments.save_strategy = "no"
    model.config.use_cache = False
    trainer = SlimTrainer(
        model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], share=False
    )
    with callbacks.neftune(model, noise):
        trainer.train()
    entries = trainer.state.log_history
    losses = [entry[name] for entry in entries for name in ("loss", "eval_loss") if name in entry]
    learned = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return losses, learned


def require_same(
    folder: Path, out: Path, dtype: str, *, noise: float = 0.0, **lora: object
) -> None:
    held = trained(adapted(folder, dtype, streamed=False, **lora), out, noise=noise)
    streamed = trained(adapted(folder, dtype, streamed=True, **lora), out, noise=noise)
    assert streamed[0] == held[0] and len(held[0]) >= 8
    assert held[0][0] != held[0][-1]
    assert all(torch.equal(streamed[1][name], one) for name, one in held[1].items())
    assert any(one.any() for name, one in held[1].items() if "lora_B" in name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_adapters_are_those_of_a_base_in_memory(tmp_path, family, dtype) -> None:
    require_same(write(tmp_path / "base", family), tmp_path, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_that_was_kept_is_not_multiplied_again(base, tmp_path, monkeypatch, dtype):
    """That of each attention's output layer, in bfloat16: float32 layers are peft's own."""
    known, usual = [], mixed.result_known

    def watched(module, result):
        known.append(result)
        return usual(module, result)

    monkeypatch.setattr(mixed, "result_known", watched)
    trained(adapted(base, dtype, streamed=True), tmp_path)
    assert len(known) >= 2 * LAYERS and len(known) % LAYERS == 0
    assert all((one is None) == (dtype == "float32") for one in known)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_weights_of_another_type_are_converted(tmp_path, kind) -> None:
    require_same(write(tmp_path / "base", dtype=kind), tmp_path, "bfloat16")


def test_read_or_used_where_it_lies(base, tmp_path, monkeypatch) -> None:
    """Other systems than Linux read what is mapped there."""
    where = trained(adapted(Path(base), "bfloat16", streamed=True), tmp_path)
    monkeypatch.setattr(mapped, "can_be", lambda *_: False)
    read = trained(adapted(Path(base), "bfloat16", streamed=True), tmp_path)
    assert read[0] == where[0]
    assert all(torch.equal(read[1][name], one) for name, one in where[1].items())


def test_batches_of_any_length_follow_one_another(base) -> None:
    """What is kept for the backward pass goes where an earlier batch kept it, larger or smaller;
    also where that one's backward pass has yet to come, or never does."""
    held, streamed = (adapted(Path(base), "bfloat16", streamed=one) for one in (False, True))
    found = []
    for model in (held, streamed):
        torch.manual_seed(0)
        model.train()
        losses = [_loss(model, length) for length in (3, 9, 4)]
        _loss(model, 7)
        losses[2].backward()
        (losses[0] + losses[1]).backward()
        _loss(model, 12).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[1][name], one) for name, one in found[0].items())


def _loss(model: torch.nn.Module, length: int) -> torch.Tensor:
    ids = torch.arange(5, 5 + length)[None]
    return model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state.sum()


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.0},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["down_proj"]},
    ],
)
def test_whatever_the_adapter_is_on(base, tmp_path, changes) -> None:
    require_same(Path(base), tmp_path, "bfloat16", **changes)


def test_noise_on_the_embeddings_is_the_same(base, tmp_path) -> None:
    require_same(Path(base), tmp_path, "float32", noise=5.0)


def test_a_step_in_memory_may_keep_its_activations_or_not(base, tmp_path) -> None:
    held = adapted(Path(base), "bfloat16", streamed=False)
    checkpointed = trained(held, tmp_path, activation_checkpointing=True)
    streamed = trained(adapted(Path(base), "bfloat16", streamed=True), tmp_path)
    assert streamed[0] == checkpointed[0]


def test_two_layers_at_most_are_in_memory(base, tmp_path) -> None:
    model = adapted(Path(base), "bfloat16", streamed=True)
    reader, seen = reader_of(model), []
    layers = model.get_base_model().model.layers
    for layer in layers:
        layer.self_attn.register_forward_pre_hook(
            lambda *_: seen.append(
                sum(one.mlp.up_proj.base_layer.weight.stride() != (0, 0) for one in layers)
            )
        )
    before = reader.bytes_read
    trained(model, tmp_path)
    assert set(seen) == {1} and len(seen) > 100
    assert len(reader.held) <= 2
    assert reader.bytes_read > before
    assert reader_of(adapted(Path(base), "bfloat16", streamed=False)) is None


@pytest.mark.parametrize("vocabulary", [60, 400])
def test_a_batch_reads_what_the_plan_says(tmp_path, vocabulary) -> None:
    """Also where the output layer takes the room of both layers."""
    base = write(tmp_path / "base", vocab_size=vocabulary)
    require_same(base, tmp_path, "bfloat16")
    run = estimates.adapter_run(Config(), str(base), ROWS)
    model = adapted(base, "bfloat16", streamed=True)
    model.train()
    trainer = SlimTrainer(
        model=model,
        args=training_arguments(model, Training(batch_size=3), tmp_path, 3, False),
        train_dataset=ROWS,
    )
    read = []
    for _ in range(3):
        batch = trainer.data_collator(ROWS[:3])
        trainer.compute_loss(model, batch).backward()
        read.append(reader_of(model).bytes_read)
    assert read[2] - read[1] == read[1] - read[0] == streaming.bytes_of_a_batch(run)


def test_a_graph_that_outlives_its_layer_says_so(base) -> None:
    """The output layer's weights are gone when somebody asks for a gradient through its logits."""
    model = adapted(Path(base), "float32", streamed=True)
    logits = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
    reader_of(model).open(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_what_a_config_describes_and_no_file_holds(tmp_path) -> None:
    folder = write(tmp_path / "base")
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace('"vocab_size": 60', '"vocab_size": 64'))
    with pytest.raises(InputError, match="config.json says"):
        adapted(folder, "float32", streamed=True)


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"]
)
def test_a_weight_that_is_not_a_number_is_named(tmp_path, name) -> None:
    folder = write(tmp_path / "base")
    info = loading.Checkpoint(folder).tensors[name]
    with info.file.open("r+b") as file:
        file.seek(info.offset + 2)
        file.write(b"\xff\xff")
    with pytest.raises(InputError, match=f"{name} holds NaN or infinity"):
        adapted(folder, "bfloat16", streamed=True)(input_ids=torch.tensor([[5, 6, 7]]))


def settled(
    base: str,
    free: float,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dry: bool = False,
    **training: object,
) -> tuple[Config, estimates.Run]:
    config = Config(training=Training(**training))
    config._options = Options(dry_run=dry)
    run = estimates.adapter_run(config, base, ROWS)
    monkeypatch.setattr(memory, "available_memory", lambda device: math.ceil(free))
    return automatic.settled(config, run)


@pytest.fixture
def small(monkeypatch) -> None:
    """The model itself is most of what a run takes, as of any large one."""
    monkeypatch.setattr(memory, "_TRAINING", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(memory, "_LOGIT_ROWS", {"cpu": 1, "cuda": 1})


def needed(base: str, **changes: object) -> float:
    run = estimates.adapter_run(Config(), base, ROWS)
    recipe = replace(run.recipe, activation_checkpointing=True, **changes)
    return replace(run, recipe=recipe).needs(1).total * memory.RESERVE


def test_auto_streams_only_where_one_row_does_not_fit_beside_the_model(
    base, small, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO", logger="slimtune")
    held, streamed = needed(base), needed(base, streamed=True)
    assert streamed < held
    config, run = settled(base, held + 1, monkeypatch)
    assert config.training.stream_base is False and not run.recipe.streamed
    assert "stream base" not in caplog.text
    config, run = settled(base, streamed + 1, monkeypatch)
    assert config.training.stream_base is True and run.recipe.streamed
    assert config.training.activation_checkpointing is False and config.training.batch_size == 1
    assert "stream base: on, one row beside the whole model would take" in caplog.text
    config, run = settled(base, streamed - 10, monkeypatch, dry=True)
    assert config.training.stream_base is False
    assert "will NOT fit" in estimates.estimate_lines(config, run)["memory"]


def test_a_dry_run_offers_streaming_where_the_model_does_not_fit(base, small, monkeypatch) -> None:
    free = needed(base, streamed=True) + 1
    config, run = settled(base, free, monkeypatch, dry=True, stream_base=False)
    rows = config.training.rows
    (line,) = streaming.dry_lines(run, rows, math.ceil(free)).items()
    assert "stream_base" in line[0] and "available: fits" in line[1]
    assert "every batch reads" in line[1]
    with pytest.raises(ResourceError) as raised:
        settled(base, free, monkeypatch, stream_base=False)
    assert "stream_base" in raised.value.cure
    with pytest.raises(ResourceError) as raised:
        settled(base, 1000, monkeypatch)
    assert "stream_base" not in raised.value.cure
    config, run = settled(base, free, monkeypatch, dry=True)
    found = timing.dry_run(config, base, run, ROWS)
    assert "every batch reads" in found["streaming"] and "fits" in found["memory"]
    config, run = settled(base, 1e12, monkeypatch, dry=True)
    assert "streaming" not in timing.dry_run(config, base, run, ROWS)


def test_timed_steps_are_those_of_a_streamed_run(base, monkeypatch) -> None:
    config, run = settled(base, 1e12, monkeypatch, stream_base=True, time_steps=2, batch_size=2)
    found = timing.dry_run(config, base, run, ROWS)
    assert "after 2 timed steps" in found["time"] and "reads for" in found["disk"]
    monkeypatch.setattr(streaming, "read_speed", lambda file: 1.0)
    assert streaming.verdict(run, 2, 1000.0).startswith("the disk is too slow")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": Lora(method="full")}, "method full"),
        ({"model": ModelSection(quantization="nf4")}, "quantised base"),
        ({"lora": Lora(modules_to_save=["lm_head"])}, "modules_to_save lm_head"),
        ({"lora": Lora(dora=True)}, "lora.dora"),
        ({"lora": Lora(initialisation="pissa")}, "initialisation pissa"),
    ],
)
def test_what_needs_the_whole_base_is_refused_by_name(base, changes, words) -> None:
    asked = Config(training=Training(stream_base=True), **changes)
    with pytest.raises(SettingsError, match=words):
        lora.require_choices(asked)
    lora.require_choices(Config(**changes))
    if "method full" not in words:
        assert not estimates.adapter_run(Config(**changes), base, ROWS).streams


def test_several_processes_do_not_stream(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="more than one process"):
        lora.require_choices(Config(training=Training(stream_base=True)))


def test_a_teacher_that_does_not_fit_says_the_same_layer_by_layer(
    base, small, tmp_path, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO", logger="slimtune")
    settings = Distillation(teacher_model=base, student_model=base)
    config = Config(distillation=settings, model=ModelSection(device="cpu", dtype="bfloat16"))
    monkeypatch.setattr(memory, "_RUNTIME", 0)
    monkeypatch.setattr(teacher_cache, "TOKENS_PER_BATCH", 20)
    said = {}
    for name, free in (("whole", 1 << 40), ("streamed", teachers._memory(config).total)):
        monkeypatch.setattr(memory, "available_memory", lambda device, free=free: free)
        teacher = teachers.load_teacher(config)
        assert (reader_of(teacher) is not None) is (name == "streamed")
        said[name] = teacher_cache.ask_model(teacher, ROWS, 8, 1.0)[0]
    assert "one after another" in caplog.text
    assert torch.equal(said["whole"].ids, said["streamed"].ids)
    assert torch.equal(said["whole"].log_probabilities, said["streamed"].log_probabilities)
    assert reader_of(teachers.load_teacher(config, [0, 1, 2])) is None


def test_a_student_is_not_streamed(base) -> None:
    run = estimates.adapter_run(Config(), base, ROWS)
    assert run.streams and not estimates.whole_run(Config(), base, ROWS).streams
