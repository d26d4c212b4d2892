"""A chat on the terminal: loads one candidate and talks until /exit."""

import sys

from slimtune.config import Config
from slimtune.console import note
from slimtune.evaluation import candidates
from slimtune.evaluation.answers import Candidate, Compute
from slimtune.evaluation.chat import Chat, terminal_input
from slimtune.evaluation.engines import open_engine, own_template

_CONTEXT = 2048


def hold(candidate: Candidate, config: Config) -> None:
    """Chat with the candidate on stdin and stdout; the model is let go at the end."""
    if config.options.dry_run:
        note(f"dry run: would chat with {candidate.label} ({candidate.reference})")
        return
    compute = Compute(config.model.device, config.model.dtype, config.model.use_quantization)
    engine = open_engine(candidate, compute, _CONTEXT)
    try:
        note(f"chatting with {candidate.label}; /help says what else it understands")
        Chat(
            engine,
            own_template(candidate, candidates.template(config)),
            output=sys.stdout,
            system=config.model.system_prompt,
            max_new_tokens=config.evaluation.max_new_tokens,
            max_length=_CONTEXT,
        ).run(terminal_input())
    finally:
        engine.close()
