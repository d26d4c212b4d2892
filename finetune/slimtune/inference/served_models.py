"""Which model a server's address or `ollama:NAME` means, and what it answers to many questions.

The server gets the messages and the decoding; template, tokenizer and context are its own. Nothing
here needs torch.
"""

import difflib
import logging
from collections.abc import Collection, Iterator, Sequence

from slimtune.console import note, tenth_done
from slimtune.errors import InputError, SettingsError
from slimtune.inference.answers import ANSWERED
from slimtune.inference.decoding import Decoding
from slimtune.inference.questions import Candidate, Question
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import AT_ONCE, Reply, ServerClient
from slimtune.inference.server_replies import Listed
from slimtune.models.ollama_store import blob_of, full_name, is_ollama, plain_name

_log = logging.getLogger(__name__)

_HERE = 2.0  # seconds in which an Ollama that runs says so
_LISTED = 60.0  # seconds in which a server says what it has: it loads no model for that


def served_candidate(reference: str) -> Candidate:
    """The model that an address or `ollama:NAME` means.

    Where no Ollama answers, the file of its store is read in its place, which is said. Raises
    SettingsError for what is no address, or means none of several models; InputError for a model
    that the server lacks; ResourceError where it does not answer.
    """
    if is_ollama(reference):
        full_name(reference)
    server = Server.of(reference)
    if server.ollama and not _runs(server):
        label = plain_name(reference)
        note(f"{label}: no Ollama answers at {server.base}: llama.cpp reads the file of its store")
        return Candidate(label, str(blob_of(reference)))
    found = _listed(server)
    named = server.named(found.name)
    return Candidate(named.label, named.reference, fingerprint=found.fingerprint)


def _runs(server: Server) -> bool:
    with ServerClient(server, patience=_HERE, pauses=()) as client:
        return client.version() is not None


def _listed(server: Server) -> Listed:
    """What the server says about its model, which is the only one where none is named."""
    with ServerClient(server, patience=_LISTED, pauses=AT_ONCE) as client:
        known = client.listed()
    if known is None and server.model:
        return Listed(server.model)
    names = [one.name for one in known or ()]
    if not server.model and len(names) == 1:
        return known[0]
    if not server.model:
        raise SettingsError(
            f"{server.shown}: which model?",
            f"it has {_some(names)}" if names else "it does not say which it has",
            f"write the name after #: {server.named(names[0] if names else 'NAME').reference}",
        )
    match = next((one for one in known or () if means(server, one.name)), None)
    if match is None:
        near = difflib.get_close_matches(server.model, names, n=1)
        other = f"write {server.named(near[0] if near else names[0]).reference}" if names else ""
        pull = f"`ollama pull {server.model}`" if server.ollama else "load it in the server"
        raise InputError(
            f"{server.shown}: it has no such model",
            f"it has {_some(names)}" if names else "it has none",
            f"{pull}, or {other}" if other else pull,
        )
    return match if not server.ollama else match._replace(name=server.model)


def listed_entry(client: ServerClient) -> Listed:
    """What the server says of the model that is asked; its name alone where it tells no more."""
    server = client.server
    known = client.listed() or ()
    return next((one for one in known if means(server, one.name)), Listed(server.model))


def means(server: Server, name: str) -> bool:
    """Whether a listed model is the one that was named; Ollama fills names up, and ignores case."""
    if not server.ollama:
        return name == server.model
    try:
        listed = full_name(name)
    except SettingsError:
        return False
    return [part.lower() for part in listed] == [p.lower() for p in full_name(server.model)]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name if len(name) < 60 else f"{name[:59]}…" for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def replies(
    client: ServerClient,
    questions: Sequence[Question],
    decoding: Decoding,
    known: Collection[int] = frozenset(),
) -> Iterator[tuple[int, Reply]]:
    """(row, reply) to each question that is not `known`, one after another."""
    missing = [row for row in range(len(questions)) if row not in known]
    for number, row in enumerate(missing, start=1):
        yield row, client.answer(questions[row].messages, decoding.for_row(row))
        done, total = len(known) + number, len(questions)
        if tenth_done(done - 1, done, total):
            _log.info("%d of %d %s", done, total, ANSWERED)
