"""The proof as convert_to_gguf runs it: how much of it memory allows, and what is left."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimtune.config import Config
from slimtune.console import near
from slimtune.errors import SlimTuneError
from slimtune.export.plan import ModelSource
from slimtune.export.preflight import reference_precision
from slimtune.export.proof.reference import Reference, build_reference
from slimtune.export.proof.serving import Served, require_served
from slimtune.export.proof.verify import verify
from slimtune.inference.decoding import Decoding
from slimtune.machine.moving import move
from slimtune.prompts import ChatMessage

_log = logging.getLogger(__name__)

_PATIENCE = 600.0  # seconds without a word from llama.cpp: a 7B in F32 takes two for a token
# What a log says where memory does not hold the model in float32.
_SHORT = {
    "bfloat16": "against the model in bfloat16: float32 needs more memory than is free",
    None: "of token ids and end token only: the model needs more memory than is free",
}


def affordable_reference(
    source: ModelSource, template: str, rows: Sequence[Sequence[ChatMessage]]
) -> Reference:
    """What the model says to the rows of the proof, once for all its files.

    Where memory holds the model in bfloat16 only, that is the reference; where not even that, no
    reference is, and token ids and the end token alone are compared. A line says so.
    """
    precision = reference_precision(source.folder)
    if precision != "float32":
        _log.info("proof %s", _SHORT[precision])
    if precision is None:
        return build_reference(source, rows, template, compared=0)
    return build_reference(source, rows, template, compared=len(rows), precision=precision)


def prove(
    written: Path,
    final: Path,
    quantization: str,
    reference: Reference,
    config: Config,
    *,
    adapter: Path | None = None,
    chat_template: str | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """`{"proof": ...}` for the run's record; `adapter` is a file that llama.cpp puts on `written`,
    `chat_template` what a server is started with in place of the file's own.

    `tolerance` is what the loss may rise by, in nats a token; None: by what the type may cost.
    Raises QualityError for a difference, ResourceError where llama.cpp hangs or lacks memory.
    """
    limits = {"tolerance": tolerance, "patience": _PATIENCE}
    proof = asdict(verify(written, reference, quantization, adapter=adapter, **limits))
    if config.gguf.verify == "served":
        decoding = Decoding.of(config.generation).within(reference.max_new_tokens)
        served = require_served(
            written,
            reference,
            decoding,
            adapter=adapter,
            chat_template=chat_template,
            patience=_PATIENCE,
        )
        proof["served"] = asdict(served)
    failed_name(final).unlink(missing_ok=True)  # an earlier attempt's
    return {"proof": proof}


@contextmanager
def failures_kept(written: Mapping[Path, Path]) -> Iterator[None]:
    """Moves files whose proof fails to names that say so, never their final ones; the error says
    which. `written` maps final names to where the files lie.
    """
    try:
        yield
    except SlimTuneError as error:
        what, why = error.what, error.why
        kept = []
        for final, now in written.items():
            failed = failed_name(final)
            move(now, failed)
            what, why = (text.replace(str(now), near(failed)) for text in (what, why))
            kept.append(near(failed))
        cure = f"{error.cure}; what failed is kept as {' and '.join(kept)}"
        raise type(error)(what, why, cure) from error


def failed_name(final: Path) -> Path:
    """m-Q4_K_M.gguf -> m-Q4_K_M.failed-proof.gguf"""
    return final.with_suffix(".failed-proof.gguf")


def proof_lines(proof: dict[str, Any]) -> str:
    """The proof in one line."""
    found = proof["proof"]
    text = f"token ids equal on {found['prompts']} prompts and {found['texts']} hard texts"
    served = f"; llama.cpp's server: {Served(**found['served']).words}" if "served" in found else ""
    if found["nll_gguf"] is None:
        return text + "; no more than that and the end token, for lack of memory" + served
    before, after = found["nll_reference"], found["nll_gguf"]
    text += f"; loss per token {before:.4f} -> {after:.4f}"
    text += f"; same greedy text for {found['agreement']:.0%} of the tokens"
    text += f"; {found['stopped']} answers end, {found['stopping']} of the model's"
    return text + served
