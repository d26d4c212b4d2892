"""What the model itself says, in transformers: the reference that its GGUF files are proven by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.export.plan import ModelSource, as_source, load_source
from slimtune.export.proof import ANSWER_TOKENS, asked
from slimtune.export.proof.hard_texts import hard_texts
from slimtune.export.quant_types import Precision
from slimtune.inference import guessing
from slimtune.inference.answers import Generation, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.generation import generate_batch
from slimtune.inference.token_losses import batch_losses
from slimtune.models import tokenizers
from slimtune.prompts import IGNORED, ChatMessage


@dataclass(frozen=True)
class ProofRow:
    """A conversation: what is `asked`, its prompt as Ollama gets it, training's ids of it, the ids
    of its answer.
    """

    asked: Sequence[ChatMessage]
    text: str
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class ReferenceAnswer:
    """The greedy answer with its margins, and the `losses` of the ids that are `scored`."""

    generation: Generation
    scored: list[int]
    losses: TokenLosses


@dataclass(frozen=True)
class Reference:
    """Rows, and what the model says to the first of them: to none where memory is short.

    `texts` are hard to tokenize (`hard_texts`), with their ids.
    """

    tokenizer: PreTrainedTokenizerFast
    rows: list[ProofRow]
    texts: list[tuple[str, list[int]]]
    answers: list[ReferenceAnswer]
    precision: Precision
    max_new_tokens: int


def build_reference(
    model: Path | str | ModelSource,
    conversations: Sequence[Sequence[ChatMessage]],
    template: str,
    *,
    compared: int = 4,
    precision: Precision = "float32",
    max_new_tokens: int = ANSWER_TOKENS,
) -> Reference:
    """Rows of all conversations, and the model's words on the first `compared`.

    A last assistant message is the answer whose likelihood counts, else the greedy answer is.
    `compared=0` spares loading the model (4 bytes a parameter, 2 in bfloat16).
    """
    source = as_source(model)
    tokenizer = tokenizers.load_tokenizer(str(source.folder))
    rows = [_row(tokenizer, messages, template) for messages in conversations]
    answers: list[ReferenceAnswer] = []
    if compared:
        loaded = load_source(source, precision)
        answers = [_answer(loaded, tokenizer, row, max_new_tokens) for row in rows[:compared]]
        _require_sound(loaded, tokenizer, answers, source.folder)
    return Reference(tokenizer, rows, hard_texts(tokenizer), answers, precision, max_new_tokens)


def _require_sound(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    answers: Sequence[ReferenceAnswer],
    folder: Path,
) -> None:
    """A caution for weights that are worse than guessing: the file will be, too, and rightly so."""

    def loss(found: Sequence[TokenLosses]) -> float:
        nats = [one for losses in found for one in losses.nats]
        return sum(nats) / max(1, len(nats))

    def plain() -> float:
        return min(loss(batch_losses(model, [one])) for one in guessing.examples(tokenizer))

    rows = loss([one.losses for one in answers])
    guessing.judge(folder, rows, plain, model.config.vocab_size, explained=True)


def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, row: ProofRow, max_new_tokens: int
) -> ReferenceAnswer:
    """One row alone: what it says must not depend on its neighbours in a batch.

    The tokenizer's EOS alone ends an answer, as training has it; generation_config has no say.
    """
    end = tokenizer.eos_token_id
    greedy = Decoding(max_new_tokens)
    (generation,) = generate_batch(model, tokenizer, [row.prompt], greedy, ends=[end], margins=True)
    scored = row.answer or generation.ids
    if generation.stopped and not row.answer:
        scored = [*scored, end]
    labels = [IGNORED] * len(row.prompt) + scored
    (losses,) = batch_losses(model, [{"input_ids": [*row.prompt, *scored], "labels": labels}])
    return ReferenceAnswer(generation, scored, losses)


def _row(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[ChatMessage], template: str
) -> ProofRow:
    prompt = prompts.encode_prompt(tokenizer, messages, template)
    question = asked(messages)
    answered = len(question) < len(messages)
    text = prompts.render(
        question,
        template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        add_generation_prompt=True,
    )
    encoded = prompts.encode(tokenizer, messages, template) if answered else None
    labels = encoded["labels"][len(prompt) :] if encoded else []
    answer = [token for token in labels if token != IGNORED]
    first = tokenizer.bos_token if prompts.puts_bos(tokenizer) else ""
    return ProofRow(question, text.removeprefix(first), prompt, answer)
