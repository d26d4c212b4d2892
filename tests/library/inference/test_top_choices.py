"""The likeliest tokens that a GGUF expects are those of its weights in transformers."""

import numpy as np
import pytest
import torch
from tiny_folders import write_tiny_llama
from transformers import LlamaForCausalLM

from slimtune.export.gguf_writer import write_gguf
from slimtune.inference.engines import LlamaCppEngine
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.top_choices import TopChoices, top_choices
from slimtune.prompts import IGNORED


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_choices_are_torchs(temperature):
    logits = 3 * torch.randn(5000, dtype=torch.float64, generator=torch.manual_seed(3))
    ids, logs = top_choices(logits.log_softmax(-1).numpy(), 5000, 32, temperature)
    wanted = (logits / temperature).log_softmax(-1).topk(32)
    assert ids.tolist() == wanted.indices.tolist()
    np.testing.assert_allclose(logs, wanted.values.numpy(), rtol=1e-9)


def test_ids_without_a_name_are_no_choice_and_keep_their_share():
    ids, logs = top_choices(np.log([0.1, 0.2, 0.7]), 2, 2, 1.0)
    assert ids.tolist() == [1, 0] and np.exp(logs).tolist() == pytest.approx([0.2, 0.1])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_llama(tmp_path_factory.mktemp("top") / "model")
    file = folder.with_suffix(".gguf")
    write_gguf(folder, file, "F32")
    return folder, file


def rows() -> list[dict[str, list[int]]]:
    """Answers after a prompt, two answers, a whole text, and a row with nothing to learn."""
    ids = [[1, *range(20, 40)], [1, *range(60, 66)], [1, *range(90, 101)], [1, 5, 6]]
    labels = [[*[IGNORED] * 9, *ids[0][9:]]]
    labels += [[IGNORED, IGNORED, ids[1][2], IGNORED, IGNORED, *ids[1][5:]]]
    labels += [[IGNORED, *ids[2][1:]], [IGNORED] * 3]
    return [{"input_ids": i, "labels": o} for i, o in zip(ids, labels, strict=True)]


def test_what_llama_cpp_expects_is_what_transformers_expects(model, tmp_path):
    folder, file = model
    torch_model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plan = TopChoices(tmp_path / "rows", 4, 2.0, torch_model.config.vocab_size)
    with LlamaCpp(file, context=64, slots=3, threads=1) as llama:
        scored = dict(
            LlamaCppEngine(llama, None, 3, exact=True).losses(rows(), plan.known(range(4)), plan)
        )
        assert set(scored) == plan.known(range(4)) == {0, 1, 2, 3}
        (tmp_path / "rows/1.top").unlink()  # as a run leaves it that was stopped there
        again = LlamaCppEngine(llama, None, 3, exact=True).losses(
            rows(), plan.known(range(4)), plan
        )
        assert 1 in dict(again) and plan.known(range(4)) == {0, 1, 2, 3}
    for number, row in enumerate(rows()):
        with torch.no_grad():
            logits = torch_model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        learned = torch.tensor(row["labels"][1:]) != IGNORED
        expected = (logits[learned] / 2).log_softmax(-1)
        ids, logs = plan.read(number)
        assert ids.shape == logs.shape == (int(learned.sum()), 4)
        # Two that are as likely may change places: llama.cpp's cache has 16 bits.
        theirs = expected.gather(1, torch.tensor(ids, dtype=torch.int64))
        np.testing.assert_allclose(logs, theirs, atol=0.02)
        np.testing.assert_allclose(logs, expected.topk(4).values, atol=0.02)
