"""A chat on the terminal: any of the candidates, loaded when first spoken to, until /exit."""

import sys
from collections.abc import Sequence
from functools import partial

from slimtune.config import Config
from slimtune.console import note
from slimtune.evaluation import candidates
from slimtune.evaluation.answers import Candidate, Compute
from slimtune.evaluation.chat import Chat, Partner, terminal_input
from slimtune.evaluation.chat_loop import talk
from slimtune.evaluation.engines import open_engine
from slimtune.evaluation.fairness import own_template

_CONTEXT = 2048


def hold(chosen: Sequence[Candidate], config: Config) -> None:
    """Chat on stdin and stdout, first with the last of `chosen`."""
    last = chosen[-1]
    if config.options.dry_run:
        note(f"dry run: would chat with {last.label} ({last.reference})")
        return
    partners = _partners(chosen, config)
    chat = Chat(partners, output=sys.stdout, system=config.model.system_prompt, max_length=_CONTEXT)
    note(f"chatting with {last.label}; /help says what else it understands")
    try:
        talk(chat, terminal_input())
    finally:
        chat.close()


def _partners(chosen: Sequence[Candidate], config: Config) -> list[Partner]:
    """Each is asked in its own template: a talk is no comparison."""
    compute = Compute(config.model.device, config.model.dtype, config.model.quantization)
    otherwise = candidates.template(config)
    return [
        Partner(
            label=one.label,
            template=own_template(one) or otherwise,
            load=partial(open_engine, one, compute, _CONTEXT),
        )
        for one in chosen
    ]
