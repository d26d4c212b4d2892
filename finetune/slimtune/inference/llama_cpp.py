"""A GGUF file in llama.cpp, in a child process: llama.cpp may abort or hang, we may not.

    with LlamaCpp(Path("model-Q4_K_M.gguf"), context=1024, slots=8) as model:
        ids = model.tokenize("[INST] Hello [/INST]")
        answers = model.generate([ids], Decoding(max_new_tokens=64))

Nothing listens on a port: parent and child talk through a pipe.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slimtune.inference.answers import Generation, Speed, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_child import LlamaChild, Verb, default_threads, work
from slimtune.inference.llama_context import LlamaContext, Prompt
from slimtune.inference.llama_vocabulary import LlamaVocabulary
from slimtune.inference.top_choices import Plan


class LlamaCpp(LlamaChild):
    """A GGUF ready to answer: `slots` prompts at once, `context` tokens each (0: the model's own).

    With no slots only its vocabulary is loaded: it tokenizes, and no more. `adapter` is the GGUF of
    a LoRA adapter, put on the model while it runs.

    Raises InputError for a file that is missing, no GGUF or damaged; ResourceError where xllamacpp
    is missing, memory does not suffice, or the child says nothing for `patience` seconds. Use it in
    a `with` block.
    """

    def __init__(
        self,
        gguf: Path | str,
        *,
        adapter: Path | None = None,
        context: int = 2048,
        slots: int = 1,
        threads: int | None = None,
        patience: float = 600.0,
    ) -> None:
        load = (context, slots, threads or default_threads())
        super().__init__(__name__, gguf, adapter, load, patience)
        self.context: int = self.loaded

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Ids as Ollama gets them: BOS first if the file says so, `</s>` in the text is EOS."""
        return self._ask("tokenize", text, add_special, parse_special)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text up to each token, with U+FFFD where bytes are no character, or not yet."""
        return self._ask("texts", ids)

    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return self._ask("ends")

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Generation]:
        """Answers to prompts given as ids, in the order of the prompts."""
        answers = dict(self.answers(prompts, decoding))
        return [answers[index] for index in range(len(prompts))]

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        rows: Sequence[int] | None = None,
        shared: int = 0,
    ) -> Iterator[tuple[int, Generation]]:
        """The same as (prompt's index, answer), each as soon as it is finished.

        `rows` are their numbers among all, from which they draw; by default among these. The first
        `shared` tokens are those of every prompt, this time and until others are named: they are
        read once a slot.
        """
        return self._tell("generate", prompts, decoding, rows or range(len(prompts)), shared)

    def stream(self, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        """One answer's text as it grows; leaving the loop early ends the generation."""
        parts = self._tell("stream", prompt, decoding)
        try:
            yield from parts
        except GeneratorExit:
            self._pipe.send(("cancel", ()))
            while self._receive()[0] != "done":
                pass
            raise

    def losses(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        plans: Sequence[Plan | None] = (),
        shared: int = 0,
    ) -> Iterator[tuple[int, TokenLosses]]:
        """(index, losses of the answer's tokens) of (prompt, answer) pairs.

        As many side by side as there are slots; one by one the last digits are others. `plans` says
        of each pair whether its predictions are kept, or compared with an original's. `shared` as
        for answers, fewer tokens than any prompt has.
        """
        return self._tell("losses", pairs, plans, shared)

    def margins(self, prompt: Prompt, answer: Prompt, at_once: int = 0) -> list[float]:
        """Nats between first and second choice at each step of `answer`, and after its last,
        computed `at_once` tokens together (0: all).
        """
        return self._ask("margins", prompt, answer, at_once)

    def speed(self, prompt: Prompt, new_tokens: int = 64) -> Speed:
        """Tokens per second of one sequence: reading `prompt`, then writing `new_tokens`."""
        return self._ask("speed", prompt, new_tokens)


def serve(handle: int) -> None:
    """The child's part, see `llama_child.work`."""
    work(handle, _load, _VERBS)


def _load(
    gguf: Path, adapter: Path | None, context: int, slots: int, threads: int
) -> tuple[LlamaVocabulary, int]:
    """The model, or its vocabulary alone where there are no slots, and how much it can read."""
    if not slots:
        engine = LlamaVocabulary(gguf)
    else:
        engine = LlamaContext(gguf, context, slots, threads, adapter)
    return engine, engine.context


def _once(method: Callable[..., object]) -> Verb:
    def call(engine: LlamaContext, *arguments: object) -> Iterator[object]:
        yield method(engine, *arguments)

    return call


_VERBS: dict[str, Verb] = {
    "tokenize": _once(LlamaContext.tokenize),
    "ends": _once(LlamaContext.ends),
    "texts": _once(LlamaContext.texts),
    "speed": _once(LlamaContext.speed),
    "margins": _once(LlamaContext.margins),
    "generate": LlamaContext.generate,
    "losses": LlamaContext.losses,
    "stream": LlamaContext.stream,
}
