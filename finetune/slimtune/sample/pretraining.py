"""Make the sample models again from nothing: tokenizer, base, teacher.

Both models read the world's plain text, packed into blocks; the larger one, the teacher, is then
taught to answer the train rows. README.md of this folder says what the shipped weights took. The
same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import sentencepiece
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from slimtune import prompts
from slimtune.console import tenth_done
from slimtune.models import tokenizers
from slimtune.prompts import ChatMessage
from slimtune.sample.world import world_text

LAYERS = {"base": 3, "teacher": 4}
VOCABULARY = 1024
BLOCK_TOKENS = 128
BLOCKS_PER_STEP = 16
# Steps and highest rate of each round of reading; a further round restarts the schedule lower.
ROUNDS = {"base": ((5500, 3e-3),), "teacher": ((5500, 3e-3), (3000, 1.5e-3))}
TEACHING_EPOCHS = 2
TEACHING_RANK = 16
TEACHING_RATE = 3e-3
TEACHING_ROWS_PER_STEP = 16

_TOKENIZER_LINES = 8000
_BOS, _EOS = 1, 2
_LAST_LINE_SHARE = 0.4  # a document ends after a line with this chance: 2.5 lines on average
_LOG_EVERY = 200

_log = logging.getLogger(__name__)


def train_models(
    output_folder: Path,
    seed: int,
    train_rows: Sequence[Sequence[ChatMessage]],
    rounds: Mapping[str, Sequence[tuple[int, float]]] = ROUNDS,
) -> None:
    """Write `output_folder`/base and /teacher: tokenizer, bf16 weights, configs.

    `train_rows` are the conversations of the train split, the only ones the teacher may see.
    `rounds` of reading are steps of BLOCKS_PER_STEP x BLOCK_TOKENS tokens and their highest rate.
    """
    processor = train_tokenizer(output_folder / "base", seed)
    tokenizer = tokenizers.from_sentencepiece(output_folder / "base" / "tokenizer.model")
    for name, layers in LAYERS.items():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(model_config(layers))
        for number, (steps, rate) in enumerate(rounds[name]):
            _log.info("%s reads: %d parameters, %d steps", name, model.num_parameters(), steps)
            pretrain(model, token_blocks(processor, seed + layers + number), steps, rate)
        if name == "teacher":
            model = teach(model, [encoded(tokenizer, row) for row in train_rows], seed)
        save_sample_model(model, tokenizer, output_folder / name)


def train_tokenizer(folder: Path, seed: int) -> sentencepiece.SentencePieceProcessor:
    """Llama-2's own kind of tokenizer (SentencePiece BPE, byte fallback) for the world's text."""
    model = io.BytesIO()  # with a file instead, its path would be written into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=world_text(seed, _TOKENIZER_LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def model_config(layers: int) -> LlamaConfig:
    """Rows are multiples of 256, so K-quants apply, also after the FFN is cut by a third."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )


def token_blocks(
    processor: sentencepiece.SentencePieceProcessor, seed: int
) -> Iterator[torch.Tensor]:
    """Endless batches, BLOCKS_PER_STEP x BLOCK_TOKENS ids: documents, BOS to EOS, without gaps."""
    size = BLOCKS_PER_STEP * BLOCK_TOKENS
    ids = itertools.chain.from_iterable(_documents(processor, seed))
    while True:
        yield torch.tensor(list(itertools.islice(ids, size))).view(BLOCKS_PER_STEP, BLOCK_TOKENS)


def _documents(processor: sentencepiece.SentencePieceProcessor, seed: int) -> Iterator[list[int]]:
    draw = random.Random(seed)
    newline = processor.piece_to_id("<0x0A>")
    document = [_BOS]
    for number in itertools.count():
        for line in world_text(seed * 1_000_003 + number, 1000):
            document += processor.encode(line)
            ends = draw.random() < _LAST_LINE_SHARE
            document.append(_EOS if ends else newline)
            if ends:
                yield document
                document = [_BOS]


def pretrain(
    model: LlamaForCausalLM, batches: Iterator[torch.Tensor], steps: int, rate: float
) -> float:
    """Next-token training on plain text; returns the mean loss of the last steps."""
    losses = (model(input_ids=ids, labels=ids).loss for ids in itertools.islice(batches, steps))
    return _descend(model, losses, steps, rate)


def teach(
    model: LlamaForCausalLM, examples: Sequence[prompts.Encoded], seed: int
) -> LlamaForCausalLM:
    """The model after LoRA on conversations, loss on the answers, adapter merged.

    Training all weights on the few rows makes it forget facts that only the text tells: 82 % of the
    test's facts came out right, against 87 % with LoRA.
    """
    steps = TEACHING_EPOCHS * (len(examples) // TEACHING_ROWS_PER_STEP)
    torch.manual_seed(seed)
    adapter = LoraConfig(r=TEACHING_RANK, lora_alpha=2 * TEACHING_RANK, target_modules="all-linear")
    adapted = get_peft_model(model, adapter)
    losses = (adapted(**batch).loss for batch in _shuffled(examples, steps, seed))
    _descend(adapted, losses, steps, TEACHING_RATE)
    return adapted.merge_and_unload()


def encoded(tokenizer: object, messages: Sequence[ChatMessage]) -> prompts.Encoded:
    return prompts.encode(tokenizer, messages, prompts.template("llama2"))


def save_sample_model(model: LlamaForCausalLM, tokenizer: object, folder: Path) -> None:
    """bf16 safetensors, configs and tokenizer files: a model folder like any other."""
    model.generation_config = GenerationConfig(
        bos_token_id=_BOS, eos_token_id=_EOS, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizers.save_tokenizer(tokenizer, folder)


def _shuffled(
    examples: Sequence[prompts.Encoded], steps: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    draw = random.Random(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < TEACHING_ROWS_PER_STEP:
            order = draw.sample(range(len(examples)), len(examples))
        chosen = [examples[order.pop()] for _ in range(TEACHING_ROWS_PER_STEP)]
        yield _padded(chosen)


def _padded(examples: Sequence[prompts.Encoded]) -> dict[str, torch.Tensor]:
    def pad(key: str, value: int) -> torch.Tensor:
        rows = [torch.tensor(example[key]) for example in examples]
        return pad_sequence(rows, batch_first=True, padding_value=value)

    # Padding stands at the end, where causal attention never looks back from: no mask is needed.
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", prompts.IGNORED)}


def _descend(
    model: LlamaForCausalLM | PeftModel, losses: Iterator[torch.Tensor], steps: int, rate: float
) -> float:
    """AdamW over a lazy stream of losses, one a step: warm-up over 2 %, then a cosine to 2 %."""
    optimizer = torch.optim.AdamW(_groups(model), lr=rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    recent: list[float] = []
    for step in range(1, steps + 1):
        # bf16 doubles the speed on CPUs that have it (AVX512-BF16), at the same loss.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = next(losses)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent = [*recent[1 - _LOG_EVERY :], loss.item()]
        if tenth_done(step - 1, step, steps):
            _log.info("step %d/%d: loss %.4f", step, steps, sum(recent) / len(recent))
    return sum(recent) / max(1, len(recent))


def _groups(model: LlamaForCausalLM | PeftModel) -> list[dict]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in weights if weight.dim() > 1]
    gains = [weight for weight in weights if weight.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]


def _share(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1, steps * 0.02))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
