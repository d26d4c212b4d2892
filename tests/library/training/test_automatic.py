"""What `auto` settles on: the usual rate, a batch that fits, checkpointing only where needed."""

import json
import math
from dataclasses import replace

import pytest
from tiny_models import tiny_model, tiny_samples

from slimtune.config import Config, Distillation, Lora, Options, Training
from slimtune.config.catalogues import names
from slimtune.errors import ResourceError
from slimtune.models import memory
from slimtune.training import automatic, estimates
from slimtune.training.rates import is_far, usual_rate

ROWS = tiny_samples(40)
LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def room(monkeypatch) -> None:
    """More memory than any run here takes."""
    monkeypatch.setattr(memory, "available_memory", lambda device: 10**12)


@pytest.fixture(autouse=True)
def said(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger="slimtune")
    return caplog


def run_with(base: str, **training: object) -> tuple[Config, estimates.Run]:
    config = Config(training=Training(**training))
    return config, estimates.adapter_run(config, base, ROWS)


def free(monkeypatch: pytest.MonkeyPatch, run: estimates.Run, rows: int) -> None:
    """As much memory as `rows` rows a step take, with the reserve, and not a byte more."""
    available = math.ceil(run.needs(rows).total * memory.RESERVE)
    monkeypatch.setattr(memory, "available_memory", lambda device: available)


@pytest.mark.parametrize(("fitting", "rows"), [(1, 1), (3, 2), (9, 8), (16, 16), (33, 16)])
def test_the_batch_keeps_the_update(base, monkeypatch, said, fitting, rows) -> None:
    config, run = run_with(base, gradient_accumulation_steps=3)
    free(monkeypatch, run, fitting)
    found = automatic.settled(config, run)[0].training
    assert (found.batch_size, found.batch_size * found.gradient_accumulation_steps) == (rows, 48)
    chosen = {"batch_size", "gradient_accumulation_steps", "activation_checkpointing"}
    chosen |= {"learning_rate", "epochs", "stream_base"}
    assert found.model_dump(exclude=chosen) == config.training.model_dump(exclude=chosen)
    assert found.activation_checkpointing is False
    assert f"{rows} row{'s' * (rows > 1)} a step" in said.text


def test_a_training_of_few_updates_is_told_how_many_epochs_are_enough(base, room, said) -> None:
    automatic.settled(*run_with(base, epochs=2))
    assert said.messages[-1] == (
        "caution: 6 updates of the weights may be too few to learn 40 rows; "
        "with 20 as training.epochs in config.yaml they are 60"
    )
    said.clear()
    automatic.settled(*run_with(base, epochs=20))
    assert "updates" not in said.text


@pytest.mark.parametrize(
    ("rows", "epochs", "updates"),
    [(3_453, 2, 432), (480, 2, 60), (300, 4, 76), (60, 15, 60), (20, 20, 40)],
)
def test_few_rows_are_learned_more_often(base, room, said, rows, epochs, updates) -> None:
    config = Config()
    run = estimates.adapter_run(config, base, [ROWS[0]] * rows)
    config, run = automatic.settled(config, run)
    assert config.training.epochs == epochs
    config.model_dump(mode="json", warnings="error")  # as the record does
    why = "usual" if epochs == 2 else f"2 are few for {rows} rows"
    assert f"epochs auto: {epochs}, {why}; {updates} updates of the weights" in said.messages
    assert "caution" not in said.text


def test_a_dozen_rows_are_not_learned_by_heart_without_end(base, room, said) -> None:
    config = Config()
    config, _ = automatic.settled(config, estimates.adapter_run(config, base, ROWS[:12]))
    assert config.training.epochs == 20
    assert "caution: 20 updates of the weights may be too few" in said.text


def test_a_students_epochs_are_its_own(base, room, said) -> None:
    config, run = run_with(base)
    config, _ = automatic.settled(config, replace(run, section="distillation"))
    assert config.distillation.epochs == 2 and config.training.epochs == "auto"
    assert "epochs auto" not in said.text


def test_no_row_that_fits_is_an_error(base, monkeypatch) -> None:
    config, run = run_with(base, activation_checkpointing=False)
    monkeypatch.setattr(memory, "available_memory", lambda device: run.needs(1).total)
    with pytest.raises(ResourceError, match="not even one row") as raised:
        automatic.settled(config, run)
    assert "convert_to_gguf.py" not in raised.value.cure
    with pytest.raises(ResourceError) as raised:
        automatic.settled(config, replace(run, through_a_file=True))
    assert "convert_to_gguf.py --target-size" in raised.value.cure
    assert "--student layers" in raised.value.cure


def test_a_dry_run_shows_what_does_not_fit(base, monkeypatch) -> None:
    config, run = run_with(base)
    config._options = Options(dry_run=True)
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    found, settled = automatic.settled(config, run)
    assert found.training.batch_size == 1 and found.training.activation_checkpointing
    assert "will NOT fit" in estimates.estimate_lines(found, settled)["memory"]


def test_what_is_given_stays(base) -> None:
    config, run = run_with(
        base,
        **{"batch_size": 5, "learning_rate": 3e-3, "epochs": 3},
        **{"activation_checkpointing": True, "stream_base": False},
    )
    assert automatic.settled(config, run) == (config, run)


def test_activations_are_kept_where_there_is_room(monkeypatch, said) -> None:
    """Only a step that does not fit without it is checkpointed, and estimated so."""
    recipe = memory.Recipe(1_000_000, 2, "nf4", device="cuda")
    run = estimates.Run(LLAMA_2_7B, recipe, [512] * 40)
    without = run.needs(8).total
    config = Config(training=Training(batch_size=8))
    for available, on in ((without * 1.2, False), (without * 0.9, True)):
        monkeypatch.setattr(memory, "available_memory", lambda device, free=available: int(free))
        found, settled = automatic.settled(config, run)
        assert found.training.activation_checkpointing is on
        assert settled.recipe.activation_checkpointing is on
        assert found.training.batch_size == 8
        assert f"checkpointing auto: {'on' if on else 'off'}" in said.text
    assert settled.needs(8).total < without


@pytest.mark.parametrize(
    ("shapes", "trained", "expected"),
    [
        (LLAMA_2_7B, 20_000_000, 2e-4),  # QLoRA (arXiv:2305.14314), table 9
        (LLAMA_2_7B, None, 2e-5),  # Stanford Alpaca
        (SMOLLM2_135M, 5_000_000, 1e-3),
        (SMOLLM2_135M, None, 1e-4),
    ],
)
def test_a_rate_suits_the_size_and_what_learns(shapes, trained, expected, room, said) -> None:
    run = estimates.Run(shapes, memory.Recipe(trained), [40] * 400)
    found, _ = automatic.settled(Config(), run)
    assert found.training.learning_rate == expected
    assert f"learning rate auto: {expected:g}, usual for" in said.text
    assert "6.7 B" in said.text or "134.5 M" in said.text
    assert "caution" not in said.text
    assert found.distillation.learning_rate == "auto"  # not read by this run


def test_the_sample_learns_as_it_always_did() -> None:
    """Its table and its files were made with these."""
    assert usual_rate(2_524_928, adapter=True) == 4e-3
    assert usual_rate(2_524_928, adapter=False) == usual_rate(2_229_248, adapter=False) == 1e-3


def test_a_student_has_a_rate_of_its_own(base) -> None:
    config, run = run_with(base)
    run = replace(run, section="distillation", recipe=memory.Recipe())
    found, _ = automatic.settled(config, run)
    assert found.distillation.learning_rate == 1e-3 and found.training.learning_rate == "auto"


def test_rates_fall_with_size_and_adapters_want_more() -> None:
    sizes = [10**power for power in range(5, 12)]
    for adapter in (True, False):
        rates = [usual_rate(size, adapter=adapter) for size in sizes]
        assert rates == sorted(rates, reverse=True)
    for size in sizes:
        assert 4 <= usual_rate(size, adapter=True) / usual_rate(size, adapter=False) <= 10
    plus = {name: usual_rate(10**8, adapter=True, optimizer=name) for name in names("optimizers")}
    assert plus["lion_8bit"] < plus["adamw_8bit"] == plus["adamw_torch"] < plus["sgd"]
    assert usual_rate(10**8, adapter=True, loraplus_ratio=16) == 5e-4
    assert usual_rate(10**8, adapter=False, loraplus_ratio=16) == 1e-4


@pytest.mark.parametrize(
    ("rate", "trained", "worrying"),
    [(4e-3, 1, True), (1e-6, 1, True), (1e-4, 1, False), (5e-4, 1, False), (2e-4, None, True)],
)
def test_a_rate_far_off_is_a_caution(rate, trained, worrying, room, said) -> None:
    """The sample's rate on Llama-2-7B among them, and an adapter's for all weights."""
    config = Config(training=Training(learning_rate=rate))
    run = estimates.Run(LLAMA_2_7B, memory.Recipe(trained), [40] * 800)
    found, _ = automatic.settled(config, run)
    assert found.training.learning_rate == rate
    assert is_far(rate, 2e-4 if trained else 2e-5) is worrying
    assert (f"{rate:g} is far off" in said.text) is worrying


def conditions(**values: object) -> dict[str, str]:
    """As a checkpoint's conditions.json has them."""
    found = {f"training.{name}": json.dumps(value) for name, value in values.items()}
    return found | {"base model": "0123abcd"}


def test_a_run_that_goes_on_keeps_what_was_settled(base, monkeypatch) -> None:
    config, run = run_with(base)
    free(monkeypatch, run, 16)
    before = conditions(learning_rate=7e-3, batch_size=4, gradient_accumulation_steps=4, epochs=2.5)
    found = automatic.settled(config, run, before)[0].training
    assert (found.learning_rate, found.epochs) == (7e-3, 2.5)
    assert (found.batch_size, found.gradient_accumulation_steps) == (4, 4)
    other = automatic.settled(config, run, conditions(batch_size=4, gradient_accumulation_steps=8))
    assert other[0].training.batch_size == 16  # another update than auto's: resuming refuses it
    given, _ = run_with(base, learning_rate=1e-3, batch_size=2)
    found = automatic.settled(given, run, before)[0].training
    assert (found.learning_rate, found.batch_size) == (1e-3, 2)


def test_processes_of_one_machine_share_its_memory(base, monkeypatch) -> None:
    config, run = run_with(base)
    free(monkeypatch, run, 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert automatic.available_for(run) == memory.available_memory("cpu") // 2
    on_gpus = replace(run, recipe=replace(run.recipe, device="cuda"))
    assert automatic.available_for(on_gpus) == memory.available_memory("cuda")


def test_loraplus_and_the_students_adapter_are_read(base) -> None:
    config = Config(lora=Lora(loraplus_ratio=16), distillation=Distillation(student="lora"))
    run = estimates.adapter_run(config, base, ROWS)
    assert automatic.settled(config, run)[0].training.learning_rate == 2e-3
