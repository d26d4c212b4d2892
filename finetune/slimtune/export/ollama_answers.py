"""What Ollama answers to eight rows, beside the file's own answers: is it the model we measured?

It is asked as `ollama run` asks: sampling is the Modelfile's. Whatever differs is told with what
can be the cause.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimtune import prompts
from slimtune.artifacts import system_prompt_for
from slimtune.config import Config
from slimtune.errors import ResourceError, SlimTuneError
from slimtune.export.go_template import twin
from slimtune.export.plan import GgufPlan
from slimtune.export.proof import ANSWER_TOKENS, SERVED_ROWS, asked, proof_rows, trained_in
from slimtune.export.proof.serving import Difference, compare, own_answers
from slimtune.inference.decoding import Decoding
from slimtune.inference.json_requests import Unanswered, request_json
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import Reply, ServerClient
from slimtune.models import tokenizers
from slimtune.models.ollama_store import PREFIX
from slimtune.models.tokenizer_files import special_tokens
from slimtune.prompts import ChatMessage

_log = logging.getLogger(__name__)


def try_out(
    modelfile: str,
    gguf: Path,
    plan: GgufPlan,
    config: Config,
    *,
    adapter: Path | None = None,
    pauses: Sequence[float] | None = None,
) -> dict[str, str]:
    """Asks the new model; its version, and how many of its answers are the file's own.

    A warning says which is the first that differs. Raises ResourceError where Ollama gives no
    answer; `pauses` are those of `ServerClient`.
    """
    tokenizer = tokenizers.load_tokenizer(plan.folder)
    decoding = Decoding.of(config.generation).within(ANSWER_TOKENS)
    rows = [asked(row) for row in proof_rows(config, plan.template)[:SERVED_ROWS]]
    system = system_prompt_for(config, trained_in(config))
    read = [_with_system(row, system) for row in rows]
    ids = [prompts.encode_prompt(tokenizer, row, plan.template) for row in read]
    own = own_answers(gguf, ids, decoding, adapter=adapter)
    stops = twin(plan.template, special_tokens(plan.folder, plan.vocabulary.tokens)).stops
    server = Server.of(PREFIX + config.gguf.model_name)
    with ServerClient(server, pauses=pauses, own_sampling=True) as client:
        replies = [_reply(client, row, decoding.for_row(n)) for n, row in enumerate(rows)]
        found = compare(own, [row[-1]["content"] for row in rows], replies, stops)
        if found.first:
            first, cause = found.first, _cause(found.first, modelfile, client)
            place = first.row, first.question[:60]
            _log.warning("row %d, %r: %s; %s", *place, first.words, cause)
        return {f"ollama {client.version()}": found.words}


def _with_system(messages: Sequence[ChatMessage], system: str) -> list[ChatMessage]:
    """As Ollama has them: the Modelfile's SYSTEM opens what has no system message of its own."""
    opened = not system or messages[0]["role"] == "system"
    opening = [] if opened else [ChatMessage(role="system", content=system)]
    return [*opening, *messages]


def _reply(client: ServerClient, messages: Sequence[ChatMessage], decoding: Decoding) -> Reply:
    try:
        return client.answer(messages, decoding)
    except SlimTuneError as error:
        name = client.server.model
        raise ResourceError(
            f"Ollama created {name} and does not answer",
            f"{error.what}: {error.why}",
            f"look at what `ollama serve` says, then try `ollama run {name}`",
        ) from error


def _cause(difference: Difference, modelfile: str, client: ServerClient) -> str:
    """What can make Ollama answer otherwise than the file does."""
    name = client.server.model
    if difference.other_prompt:
        return (
            f"the template: compare `ollama show --template {name}` with the Modelfile; another "
            "model of the same file may be loaded with its own (`ollama ps`, `ollama stop`)"
        )
    lines = modelfile.splitlines()
    given = [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER ")]
    wanted, found = _parameters(given), _kept_parameters(client)
    other = [key for key, value in wanted.items() if found.get(key) != value]
    if found and other:
        told = ", ".join(f"{key} is {found.get(key, 'unset')}, not {wanted[key]}" for key in other)
        return f"the parameters: {told} (`ollama show --parameters {name}`)"
    return (
        "the version: template and parameters are those of the Modelfile, so this Ollama computes "
        "or samples otherwise than llama.cpp; try a newer one"
    )


def _kept_parameters(client: ServerClient) -> dict[str, Any]:
    """The PARAMETER lines that Ollama keeps of the model; none where it does not tell."""
    server = client.server
    try:
        found = request_json(f"{server.base}/api/show", {"model": server.model})
    except Unanswered:
        return {}
    return _parameters(str(found.get("parameters", "")).splitlines())


def _parameters(lines: Sequence[str]) -> dict[str, float | str]:
    """Lines of `NAME VALUE`, without the many of `stop`."""
    pairs = [line.split(None, 1) for line in lines if len(line.split(None, 1)) == 2]
    return {name: _number(value.strip()) for name, value in pairs if name != "stop"}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
