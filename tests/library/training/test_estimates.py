"""What a run is said to take: memory, the largest batch, the steps of a dry run."""

import math

import pytest
from tiny_models import tiny_model, tiny_samples

from slimtune.config import Config, Lora, Training
from slimtune.models import memory
from slimtune.training import estimates, lora, timing

ROWS = tiny_samples(40)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return str(folder)


def run_with(base: str, **training: object) -> tuple[Config, estimates.Run]:
    config = Config(training=Training(**training))
    return config, estimates.adapter_run(config, base, ROWS)


def test_the_largest_batch_is_made_of_the_longest_rows(base, monkeypatch) -> None:
    _, run = run_with(base)
    longest = sorted((len(row.input_ids) for row in ROWS), reverse=True)
    assert run.needs(3) == memory.training(run.shapes, run.recipe, sum(longest[:3]))
    for rows in (1, 2, 7, 40):
        available = math.ceil(run.needs(rows).total * memory.RESERVE)
        assert estimates.largest_batch(run, available) == rows
    assert estimates.largest_batch(run, run.needs(1).total) == 0


def test_a_process_of_two_needs_room_for_its_part(base, monkeypatch) -> None:
    alone = estimates.whole_run(Config(), base, ROWS)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    one, half = alone.needs(1), estimates.whole_run(Config(), base, ROWS).needs(1)
    assert (half.gradients, half.optimizer) == (one.gradients // 2, one.optimizer // 2)
    assert half.activations == one.activations
    assert half.weights > one.weights / 2  # two layers are all that this model has


def test_trained_parameters_are_pefts(base) -> None:
    settings = Lora(rank=3, modules_to_save=["embed_tokens"])
    model = lora.attach(tiny_model(), settings, seed=0)
    run = estimates.adapter_run(Config(lora=settings), base, ROWS)
    assert run.recipe.trained == model.get_nb_trainable_parameters()[0]


def test_all_weights_cost_gradients_and_moments(base) -> None:
    config = Config(training=Training(optimizer="adamw_8bit"))
    whole, adapted = (
        plan(config, base, ROWS).needs(4) for plan in (estimates.whole_run, estimates.adapter_run)
    )
    assert whole.gradients == whole.weights == 2 * whole.optimizer
    assert whole.total > adapted.total


def test_two_timed_steps_give_a_duration(base) -> None:
    config, run = run_with(base, time_steps=2, batch_size=4, epochs=2)
    found = timing.dry_run(config, base, run, ROWS)
    assert found["steps"] == "20 of 4 x 1 rows"
    assert "after 2 timed steps" in found["time"]
    assert "time" not in timing.dry_run(*run_with(base)[:1], base, run, ROWS)
