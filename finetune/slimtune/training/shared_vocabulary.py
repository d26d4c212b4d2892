"""What teacher and student may say to each other: the same tokens, under the same ids or mapped.

    p(v | kept) = exp z(v) / sum over kept u of exp z(u)

is what a teacher over a whole vocabulary says to a student whose vocabulary was trimmed: z are the
teacher's logits, v and u run over the tokens that the student has. The probability of the tokens
that went is left out and the rest scaled to one. It cannot stay where it was, in the bucket of all
that is not among the top k: the student would have to give it to tokens of its own that the teacher
holds unlikely. The rows have none of these tokens, and a teacher that was trimmed by the same map
says the very same.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from slimtune.console import near
from slimtune.errors import InputError
from slimtune.models import tokenizers
from slimtune.models.folders import local_folder
from slimtune.models.gguf_header import is_gguf, read_gguf
from slimtune.models.vocabulary_map import MAP_FILE, read_map
from slimtune.models.weights import EMBEDDING, Checkpoint
from slimtune.training import gguf_vocabulary

Vocabulary = Mapping[str, int]

_TRIM_TOO = (
    "trim the student again, or the teacher by model_pruning.py --vocabulary trim --ffn-ratio 0 "
    "with the same rows, text and languages, and name its folder"
)
_ONE_TOKENIZER = (
    "choose a teacher with the student's tokenizer (the unpruned model is one), or let it write "
    "answers to learn from: --mode sequence"
)


class OtherVocabulary(InputError):
    """Teacher and student cannot be compared token by token; `why` names a token."""


def ids_in_teacher(teacher: str, student: str) -> list[int] | None:
    """The teacher's id of each token of a student that was trimmed; None where all ids are the
    same.

    The student's record says which, the tokens themselves confirm it: a folder may have any name,
    and so may a GGUF file. OtherVocabulary for those that are neither the same nor mapped: the
    lesson would be garbage.
    """
    if is_gguf(teacher):
        return _ids_in_file(Path(teacher), student)
    ours, theirs = (tokenizers.load_tokenizer(one).get_vocab() for one in (student, teacher))
    if ours == theirs:
        return None
    mapped = _recorded(local_folder(teacher), local_folder(student))
    if mapped is None:
        raise _different(
            ours, theirs, [token for token, id in ours.items() if theirs.get(token) != id]
        )
    there = dict(enumerate(mapped))
    different = [token for token, id in ours.items() if theirs.get(token, -1) != there.get(id)]
    if different:
        raise _different(ours, theirs, different)
    return mapped


def _recorded(teacher: Path, student: Path) -> list[int] | None:
    """The teacher's ids by the records; None where there is none, or the teacher lacks one.

    A teacher that was trimmed too has its ids in the same first vocabulary.
    """
    known, own = read_map(student), read_map(teacher)
    if known is None:
        return None
    rows = Checkpoint(teacher).shapes[EMBEDDING][0]
    number = {old: new for new, old in enumerate(own.kept if own else range(rows))}
    found = [number.get(old) for old in known.kept]
    return None if None in found else found


def _ids_in_file(file: Path, student: str) -> list[int] | None:
    """A file has no record of how it was trimmed itself: it has all first ids, or the student's."""
    header, ours = read_gguf(file), tokenizers.load_tokenizer(student).get_vocab()
    known = read_map(local_folder(student))
    other = gguf_vocabulary.difference(header, ours)
    if other is None:
        return None
    if known is not None:
        other = gguf_vocabulary.difference(header, ours, known.kept)
    if other is not None:
        raise OtherVocabulary(f"{near(file)}: its vocabulary is another", other, _ONE_TOKENIZER)
    return known.kept


def _different(ours: Vocabulary, theirs: Vocabulary, different: list[str]) -> OtherVocabulary:
    example = next(iter(different), "the teacher has tokens that the student lacks")
    why, cure = f"for example {example!r}", _ONE_TOKENIZER
    if ours.keys() < theirs.keys():
        why += f"; the student was trimmed, and no {MAP_FILE} in it leads to this teacher's ids"
        cure = _TRIM_TOO
    return OtherVocabulary(
        f"teacher and student speak different vocabularies ({len(different)} tokens differ)",
        f"{why}; the teacher's probabilities would land on other tokens",
        cure,
    )


def speak_as_student(model: PreTrainedModel, ids: list[int]) -> PreTrainedModel:
    """The teacher over the student's ids alone, in place: p(v | kept) of the docstring above.

    Rows of its embedding and its output layer are taken, nothing else changes; the tokens that went
    cost nothing any more.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    chosen = torch.tensor(ids, device=embedding.weight.device)
    tied = head.weight is embedding.weight
    embedding.weight = _rows(embedding.weight, chosen)
    embedding.padding_idx = None
    head.weight = embedding.weight if tied else _rows(head.weight, chosen)
    if head.bias is not None:
        head.bias = _rows(head.bias, chosen)
    embedding.num_embeddings = head.out_features = model.config.vocab_size = len(ids)
    return model


def _rows(weight: nn.Parameter, chosen: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach()[chosen], requires_grad=False)
