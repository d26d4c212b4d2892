"""What an error in a weight costs: F_ij = E[(dL/dW_ij)²], L = −ln p(y), y drawn from the model.

To second order the Kullback-Leibler divergence of a model with weights W + D from the model itself
is ½ Σ F_ij D_ij², where F is the diagonal of the Fisher information (Amari 1998). Its sums over
rows and columns are measured, two vectors a matrix, and their product over their total stands for
F: on SmolLM2-135M it gave the same choice of types and the same estimate as F itself.

With X (tokens, in) what enters a matrix for one row of text and G (tokens, out) the gradient of
what leaves it, dW = GᵀX, and the sums of its squares need no dW:

    over columns, for each row:  Σ_t (G ∘ (XXᵀ G))_t        over rows:  Σ_t (X ∘ (GGᵀ X))_t

llama.cpp rounds what enters a matrix of a quantised type to 8 bits, with one scale for 32 values,
or for 256 where the type has blocks of 256. With R what rounding adds to X, that costs
½ (Σ_tj R_tj (GW)_tj)² for each row of text: of SmolLM2 at the bytes of Q5_K_M a third of all loss.

How columns make up for each other's errors (`feedback`) is decided by the second moments of what
enters, each token weighed by the square of its gradient: Σ_t |G_t|² X_tᵀ X_t; of an embedding,
where a token's row is what leaves it, Σ_t G_tᵀ G_t. What it then costs is told by other text.

The model goes forwards and backwards layer by layer (`inference.stack`): in memory are one layer or
the output matrix, and one batch. Forwards it gives the sums of squares of an importance matrix.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from slimtune.export import feedback
from slimtune.inference.stack import Stack, Stream, TokenBatch
from slimtune.models.family import PARTS
from slimtune.models.weights import EMBEDDING, OUTPUT

_VOCABULARY = 8192  # columns of the logits' gradient that are squared at a time

BLOCKS = (32, 256)  # values that share a scale where activations are rounded

Packed = tuple[np.ndarray, np.ndarray]  # `feedback.packed`

# Over each row and over each column of F, float64; of rounding, for each of BLOCKS; moments, of the
# text that columns make up by and of that which was kept back.
Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# The number of a batch, the name of a matrix, and what the batch adds to its sums.
_Take = Callable[[int, str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


def squares_of_inputs(
    stack: Stack,
    batches: Sequence[TokenBatch],
    streams: Sequence[Stream],
    counted: int | None = None,
) -> dict[str, torch.Tensor]:
    """Hugging Face name of each matrix of the layers -> Σ_t x_t² of what enters it, float64.

    `streams` get what enters each layer, the last what leaves the last one; a single one serves
    where nobody needs them afterwards. Of the batches the first `counted` are summed, or all.
    """
    into = [streams[min(index, len(streams) - 1)] for index in range(stack.layers + 1)]
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for number, batch in enumerate(batches):
            into[0].write(number, stack.embed(batch.ids))
        for index in range(stack.layers):
            _forwards(stack, index, batches, into[index], into[index + 1], sums, counted)
    return sums


def fisher_sums(
    stack: Stack,
    batches: Sequence[TokenBatch],
    folder: Path,
    seed: int,
    kept_back: Sequence[TokenBatch] = (),
) -> tuple[dict[str, torch.Tensor], dict[str, Sums], dict[str, Packed]]:
    """(`squares_of_inputs`, sums for one token of every matrix, how its columns make up).

    Embedding and output matrix are among the latter; one that is both has the sum of the two. The
    last token of a row is asked as well: its label is drawn, not read. `seed` draws the labels. The
    batches `kept_back` are in no sum; there is measured what is left where columns make up.
    """
    decided, batches = len(batches), [*batches, *kept_back]
    streams = [Stream(folder, f"into-{index}") for index in range(stack.layers + 1)]
    squares = squares_of_inputs(stack, batches, streams, decided)
    found: dict[str, Sums] = {}
    made_up: dict[str, Packed] = {}
    times: list[float] = []

    def add(number: int, name: str, *sums: torch.Tensor) -> None:
        *sums, squares = sums
        before = found.get(name, (0, 0, 0, squares.new_zeros(2, *squares.shape).double()))
        before[3][int(number >= decided)] += squares
        added = [one + more.double() for one, more in zip(before, sums, strict=False)]
        found[name] = (*(added if number < decided else before[:3]), before[3])

    _through_the_head(stack, batches, streams[-1], add, torch.Generator().manual_seed(seed))
    for index in reversed(range(stack.layers)):
        _backwards(stack, index, len(batches), streams[index], streams[index + 1], add)
        made_up |= _made_up(found, f"model.layers.{index}.", times)
    for number, batch in enumerate(batches):
        shape = stack.tensors[EMBEDDING].shape
        _into_the_embedding(batch, streams[0].read(number), shape, partial(add, number))
    tokens = sum(batch.tokens for batch in batches[:decided])
    made_up |= _made_up(found, "", times)
    # One for all: that of a matrix is known to a tenth or two, and would choose types by chance.
    scale = np.float32(np.mean(times)) if times else 1
    return (
        squares,
        {name: tuple(one.clamp(min=0) / tokens for one in sums) for name, sums in found.items()},
        {name: (kept * scale, pairs) for name, (kept, pairs) in made_up.items()},
    )


def _made_up(found: dict[str, Sums], prefix: str, times: list[float]) -> dict[str, Packed]:
    """`feedback.packed` of the matrices of a prefix, whose moments are then gone from `found`.

    `times` gets the `feedback.times_kept` of each.
    """
    names = [name for name in found if name.startswith(prefix) and found[name][3].numel()]
    packed = {}
    for name in names:
        moments, others = found[name][3].numpy()
        triangles = feedback.triangles(moments)
        packed[name] = feedback.packed(triangles)
        times.append(feedback.times_kept(triangles, others))
        found[name] = (*found[name][:3], torch.empty(0))
    return packed


def _forwards(
    stack: Stack,
    index: int,
    batches: Sequence[TokenBatch],
    into: Stream,
    out: Stream,
    sums: dict[str, torch.Tensor],
    counted: int | None,
) -> None:
    """One layer over all batches; it is gone from memory before the next is read."""
    layer = stack.layer(index)
    for number, batch in enumerate(batches):
        hooks = [
            module.register_forward_pre_hook(_squares_to(sums, name, batch.real))
            for name, module in _matrices(layer, index)
            if counted is None or number < counted
        ]
        hidden = stack.run(layer, into.read(number))
        for hook in hooks:
            hook.remove()
        out.write(number, hidden)


def _backwards(
    stack: Stack, index: int, batches: int, into: Stream, out: Stream, add: _Take
) -> None:
    """The same the other way: gradients of what left the layer, in `out`, become those of what
    entered it, in the place of `into`.
    """
    layer = stack.layer(index)
    for number in range(batches):
        hidden = into.read(number).requires_grad_()
        hooks = [
            module.register_forward_hook(_gradient_to(partial(add, number, name)))
            for name, module in _matrices(layer, index)
        ]
        stack.run(layer, hidden).backward(out.read(number))
        for hook in hooks:
            hook.remove()
        into.write(number, hidden.grad)


def outer_sums(inputs: torch.Tensor, gradients: torch.Tensor) -> Sums:
    """Sums of (GᵀX)² over columns and over rows, summed over a batch.

    `inputs` (batch, tokens, in), `gradients` (batch, tokens, out), zero where a token is padding;
    returns (out,) and (in,).
    """
    between = inputs @ inputs.transpose(1, 2)
    rows = [((between @ part) * part).sum((0, 1)) for part in gradients.split(_VOCABULARY, dim=-1)]
    between = gradients @ gradients.transpose(1, 2)
    return torch.cat(rows), ((between @ inputs) * inputs).sum((0, 1))


def moments(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_t weights_t states_tᵀ states_t in squares along the diagonal, (squares, width, width).

    `states` (…, columns), `weights` (…); empty where no type needs it.
    """
    width = feedback.width_of(states.shape[-1])
    if width is None:
        return torch.empty(0)
    parts = states.reshape(-1, states.shape[-1] // width, width).transpose(0, 1)
    return (parts * weights.reshape(1, -1, 1)).transpose(1, 2) @ parts


def rounding_costs(inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """(Σ R ∘ gradients)² summed over a batch, R what rounding `inputs` to 8 bits adds, by BLOCKS.

    Both (batch, tokens, in); the gradients are those of the inputs. A length that a block does not
    divide is rounded with the other, or not at all: llama.cpp has no such type for it.
    """
    costs = torch.zeros(len(BLOCKS), dtype=torch.float64)
    for place, block in enumerate(BLOCKS):
        if inputs.shape[-1] % block:
            continue
        parts = inputs.reshape(*inputs.shape[:-1], -1, block)
        scales = (parts.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        added = ((parts / scales).round() * scales - parts).view_as(inputs)
        costs[place] = (added * gradients).sum((1, 2)).double().square().sum()
    return costs


def _matrices(layer: nn.Module, index: int) -> list[tuple[str, nn.Module]]:
    """(Hugging Face name of its weight, module) of every linear layer of a decoder layer."""
    return [
        (f"model.layers.{index}.{part.path}.weight", layer.get_submodule(part.path))
        for part in PARTS.values()
        if len(part.axes) == 2
    ]


def _squares_to(
    sums: dict[str, torch.Tensor], name: str, real: torch.Tensor
) -> Callable[..., None]:
    """A hook that adds the squares of what enters a matrix, padding left out."""

    def watch(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        sums[name] = sums.get(name, 0) + inputs[0][real].double().square().sum(0)

    return watch


def _gradient_to(add: Callable[..., None]) -> Callable[..., None]:
    """A forward hook that gives `add` the sums of a matrix when its gradient comes."""

    def watch(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        entered = inputs[0].detach()

        def take(gradient: torch.Tensor) -> None:
            rounding = rounding_costs(entered, gradient @ module.weight)
            squares = moments(entered, gradient.square().sum(-1))
            add(*outer_sums(entered, gradient), rounding, squares)

        output.register_hook(take)

    return watch


def _through_the_head(
    stack: Stack,
    batches: Sequence[TokenBatch],
    last: Stream,
    add: _Take,
    generator: torch.Generator,
) -> None:
    """Draws the labels, and writes dL/dh of the last layer's output in its place.

    dL/dlogits = p − onehot(y). One row of text at a time: its logits, (tokens, vocabulary), are the
    largest thing here beside the matrix itself.
    """
    name = EMBEDDING if stack.tied else OUTPUT
    head = torch.empty(stack.tensors[name].shape)
    for start, rows in stack.head():
        head[start : start + len(rows)] = rows
    norm = stack.norm()
    for number, batch in enumerate(batches):
        hidden = last.read(number)
        for row, length in enumerate(batch.real.sum(1).tolist()):
            states = hidden[row, :length].clone().requires_grad_()
            normed = norm(states)
            gradient = _drawn_gradient(normed.detach() @ head.T, generator)
            entered, back = normed.detach()[None], gradient @ head
            rounding = rounding_costs(entered, back[None])
            squares = moments(entered, gradient.square().sum(-1))
            add(number, name, *outer_sums(entered, gradient[None]), rounding, squares)
            normed.backward(back)
            hidden[row, :length] = states.grad
            hidden[row, length:] = 0
        last.write(number, hidden)


def _drawn_gradient(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """p − onehot(y) for y ~ p = softmax(logits), in the place of `logits`: (tokens, vocabulary)."""
    chances = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    chances.div_(chances.sum(-1, keepdim=True))
    labels = torch.multinomial(chances, 1, generator=generator)
    return chances.scatter_add_(-1, labels, torch.full_like(labels, -1, dtype=chances.dtype))


def _into_the_embedding(
    batch: TokenBatch,
    gradients: torch.Tensor,
    shape: tuple[int, int],
    add: Callable[..., None],
) -> None:
    """The embedding's share: a token's gradient goes into the row of its id."""
    for ids, real, gradient in zip(batch.ids, batch.real, gradients, strict=True):
        present, place = ids[real].unique(return_inverse=True)
        sums = torch.zeros(len(present), shape[1]).index_add_(0, place, gradient[real]).square()
        rows = torch.zeros(shape[0]).index_add_(0, present, sums.sum(1))
        squares = moments(gradient[real], torch.ones(int(real.sum())))
        add(EMBEDDING, rows, sums.sum(0), torch.zeros(len(BLOCKS)), squares)
