"""A model that runs one decoder layer at a time: only that layer is ever in memory.

What flows from layer to layer lies on disk, batch by batch, so the peak grows neither with depth
nor with the number of calibration rows. Layers are transformers' own modules, computed in float32.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from slimtune.models import weights
from slimtune.models.headers import TensorInfo, read_tensor
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint

_TOKENS = 256  # positions whose logits are computed at a time
_BATCH_TOKENS = 4096

Read = Callable[[str, int, int | None], torch.Tensor]  # rows start..stop of a tensor


@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids padded at their end, (rows, length), and which of them are real."""

    ids: torch.Tensor
    real: torch.Tensor

    @property
    def tokens(self) -> int:
        return int(self.real.sum())


def batches_of(rows: Sequence[Sequence[int]], tokens: int = _BATCH_TOKENS) -> list[TokenBatch]:
    """Rows of like length together, padded at the end: causal layers never look there."""
    batches: list[TokenBatch] = []
    waiting: list[Sequence[int]] = []
    for row in [*sorted(rows, key=len), None]:
        if waiting and (row is None or (len(waiting) + 1) * len(row) > tokens):
            longest = len(waiting[-1])
            ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in waiting])
            lengths = torch.tensor([len(one) for one in waiting])
            batches.append(TokenBatch(ids, torch.arange(longest) < lengths[:, None]))
            waiting = []
        if row is not None:
            waiting.append(row)
    return batches


class Stack:
    """The layers of a model, loaded when asked for: `tensors` say where the weights lie.

    `read` gives their rows where they are more than what lies there, as those of a merge are.
    """

    def __init__(
        self, config: dict, tensors: Mapping[str, TensorInfo], read: Read | None = None
    ) -> None:
        settings = {k: v for k, v in config.items() if k not in ("model_type", "layer_types")}
        settings["num_hidden_layers"] = 1
        one = AutoConfig.for_model(config["model_type"], **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(one, attn_implementation="sdpa").eval()
        self._layer, self._norm = model.model.layers[0], model.model.norm
        self._rotary = type(model.model.rotary_emb)(one)
        self.layers = config["num_hidden_layers"]
        self.tensors = tensors
        self._read = read or (lambda name, start, stop: read_tensor(tensors[name], start, stop))
        self.tied = config.get("tie_word_embeddings", False) or OUTPUT not in tensors

    @classmethod
    def of(cls, folder: Path) -> "Stack":
        checkpoint = Checkpoint(folder)
        return cls(checkpoint.config, checkpoint.tensors)

    def layer(self, index: int, *, train: bool = False) -> nn.Module:
        """Decoder layer `index` in float32; `train` asks for gradients of its weights."""
        prefix = f"model.layers.{index}."
        names = [name for name in self._layer.state_dict() if prefix + name in self.tensors]
        state = {name: self._read(prefix + name, 0, None).float() for name in names}
        layer = copy.deepcopy(self._layer)
        layer.load_state_dict(state, assign=True)
        return layer.requires_grad_(train)

    def streamed_layer(self, index: int) -> nn.Module:
        """The same layer whose matrices stay in the file: each is read a few rows at a time."""
        prefix, layer = f"model.layers.{index}.", copy.deepcopy(self._layer)
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                bias = self.tensors.get(f"{prefix}{name}.bias")
                weight = self.tensors[f"{prefix}{name}.weight"]
                layer.set_submodule(name, _RowsOfFile(weight, bias))
            elif name.endswith("norm"):
                weight = read_tensor(self.tensors[f"{prefix}{name}.weight"]).float()
                module.load_state_dict({"weight": weight}, assign=True)
        return layer

    def norm(self, *, train: bool = False) -> nn.Module:
        """The norm before the output layer."""
        norm = copy.deepcopy(self._norm)
        weight = self._read("model.norm.weight", 0, None).float()
        norm.load_state_dict({"weight": weight}, assign=True)
        return norm.requires_grad_(train)

    def run(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """One layer over hidden states (rows, length, hidden), causally."""
        positions = torch.arange(hidden.shape[1])[None]
        rotary = self._rotary(hidden, position_ids=positions)
        return layer(hidden, attention_mask=None, position_embeddings=rotary)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states of token ids, from a few rows of the embedding at a time."""
        hidden = torch.empty(*ids.shape, self.tensors[EMBEDDING].shape[1])
        for start, rows in self._rows(EMBEDDING):
            inside = (ids >= start) & (ids < start + len(rows))
            hidden[inside] = rows[ids[inside] - start].float()
        return hidden

    def head(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The output layer a few rows at a time: (first id, rows in float32)."""
        for start, rows in self._rows(EMBEDDING if self.tied else OUTPUT):
            yield start, rows.float()

    def head_rows(self, start: int, stop: int) -> torch.Tensor:
        """Some rows of the output layer in float32."""
        return self._read(EMBEDDING if self.tied else OUTPUT, start, stop).float()

    def _rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        for start, stop in _pieces(self.tensors[name]):
            yield start, self._read(name, start, stop)


def tensor_rows(info: TensorInfo) -> Iterator[tuple[int, torch.Tensor]]:
    """`Checkpoint.rows` for a matrix that is still being written: (first row, a few rows)."""
    for start, stop in _pieces(info):
        yield start, read_tensor(info, start, stop)


def _pieces(info: TensorInfo) -> Iterator[tuple[int, int]]:
    step = max(1, weights.CHUNK_BYTES // info.row_bytes)
    for start in range(0, info.shape[0], step):
        yield start, min(start + step, info.shape[0])


class _RowsOfFile(nn.Module):
    """y = x W^T + b with W in a file."""

    def __init__(self, weight: TensorInfo, bias: TensorInfo | None) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        parts = [inputs @ rows.float().T for _, rows in tensor_rows(self._weight)]
        output = torch.cat(parts, dim=-1)
        return output if self._bias is None else output + read_tensor(self._bias).float()


class Stream:
    """Hidden states of all batches in files of `folder`: written once a layer, read once."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self._shapes: dict[int, torch.Size] = {}

    def write(self, number: int, hidden: torch.Tensor) -> None:
        self._shapes[number] = hidden.shape
        hidden.detach().contiguous().numpy().tofile(self._file(number))

    def read(self, number: int) -> torch.Tensor:
        flat = np.fromfile(self._file(number), np.float32)
        return torch.from_numpy(flat).view(self._shapes[number])

    def _file(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number}.f32"


def losses(stack: Stack, hidden: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Cross entropy of each real next token, (tokens,), from the last layer's hidden states.

    loss = logsumexp(W h) - W_y h, the sum over the vocabulary taken a few rows of W at a time.
    """
    where = batch.real[:, 1:] & batch.real[:, :-1]
    states = stack.norm()(hidden[:, :-1][where])
    targets = batch.ids[:, 1:][where]
    sums = torch.full((len(states),), -torch.inf)
    chosen = torch.zeros(len(states))
    for start, rows in stack.head():
        for begin in range(0, len(states), _TOKENS):
            part = slice(begin, begin + _TOKENS)
            logits = states[part] @ rows.T
            sums[part] = torch.logaddexp(sums[part], logits.logsumexp(dim=1))
            ids = targets[part] - start
            inside = (ids >= 0) & (ids < len(rows))
            chosen[part][inside] = logits[inside.nonzero()[:, 0], ids[inside]]
    return sums - chosen


def divergences(meant: Stack, found: Stack, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """KL(p || q) of each token in nats, (tokens,), from what leaves the last layers of both.

    KL = Σ p (a - b) - logsumexp a + logsumexp b, with logits a of `meant` and b of `found`, the
    sums over the vocabulary taken a few rows of both output matrices at a time. `states` (2,
    tokens, hidden).
    """
    ours, theirs = meant.norm()(states[0]), found.norm()(states[1])
    tokens = len(ours)
    sums = torch.full((2, tokens), -torch.inf, dtype=torch.float64)
    weighed = torch.zeros(tokens, dtype=torch.float64)
    for start, rows in found.head():
        own = meant.head_rows(start, start + len(rows))
        for begin in range(0, tokens, _TOKENS):
            part = slice(begin, begin + _TOKENS)
            a, b = ours[part] @ own.T, theirs[part] @ rows.T
            before = sums[0, part].clone()
            for which, logits in enumerate((a, b)):
                more = logits.logsumexp(dim=1).double()
                sums[which, part] = torch.logaddexp(sums[which, part], more)
            chances = (a - sums[0, part, None]).exp()
            weighed[part] *= (before - sums[0, part]).exp()
            weighed[part] += (chances * (a - b)).sum(1)
    return weighed - sums[0] + sums[1]


@dataclass(frozen=True)
class Reading:
    """How a model reads: perplexity over real next tokens, and tokens a second in its layers."""

    perplexity: float
    tokens_per_second: float
    last_hidden: torch.Tensor


@torch.inference_mode()
def read_layers(folder: Path, batches: list[TokenBatch], scratch: Path) -> Reading:
    """Reads `batches` with the model of `folder`, layer by layer."""
    stack, stream, spent = Stack.of(folder), Stream(scratch, "reading"), 0.0
    for number, batch in enumerate(batches):
        stream.write(number, stack.embed(batch.ids))
    for index in range(stack.layers):
        layer = stack.layer(index)
        for number in range(len(batches)):
            hidden = stream.read(number)
            started = time.perf_counter()
            hidden = stack.run(layer, hidden)
            spent += time.perf_counter() - started
            stream.write(number, hidden)
    entropies = [losses(stack, stream.read(n), batch) for n, batch in enumerate(batches)]
    tokens = sum(batch.ids.numel() for batch in batches)
    perplexity = torch.cat(entropies).double().mean().exp().item()
    return Reading(perplexity, tokens / spent, stream.read(0))


def input_hook(module: nn.Module, take) -> torch.utils.hooks.RemovableHandle:
    """Calls `take(input)` with what `module` is given, each time it runs."""
    return module.register_forward_pre_hook(lambda _, inputs: take(inputs[0]))
