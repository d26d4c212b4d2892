"""Secrets, known by what they look like or by their variable, replaced by *** in all we say."""

import os
import re
from collections.abc import Mapping
from typing import Any

_MASK = "***"
# What a secret looks like, by those who give them out: (what is kept, what is masked). Words of
# ordinary texts that begin alike (sk-learn, Bearer of news) have no digit, or are shorter.
_SECRETS = re.compile(
    r"""
    (?P<kept>
        (?<![A-Za-z0-9]) (?:
            hf_ (?=[A-Za-z0-9]{16})                # Hugging Face
          | sk- (?=[\w-]*\d) (?=[\w-]{16})         # OpenAI, Anthropic and what is alike
          | gh[oprsu]_ (?=[A-Za-z0-9]{16})         # GitHub
          | github_pat_ (?=\w{16})
          | glpat- (?=[\w-]{16})                   # GitLab
          | (?:AKIA|ASIA) (?=[A-Z0-9]{16})         # Amazon
        )
      | (?i:\bBearer[ ]+) (?=\S*\d|\S{20})        # a header of HTTP
      | [?&](?i:(?:api[_-]?|access[_-]?)?(?:key|token)|password|secret)=   # of an address
    ) [\w.~+/=-]{4,}
    | (?P<scheme> https?:/{1,2} | \b[a-z][\w+.-]+://) [^\s/@]+ @   # a Path has one slash left
    """,
    re.VERBOSE,
)
# Keys that no pattern knows; a server that refuses one repeats it in its error.
_KEYS = ("SLIMTUNE_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")
_SHORTEST_KEY = 8  # a shorter one may be a word


def masked(text: str) -> str:
    """`text` with *** for each secret in it: all that is printed, logged, recorded or put on a card
    passes here. What kind it is, and where an address leads, stays to be read.
    """
    text = _SECRETS.sub(_without, text)
    for name in _KEYS:
        key = os.environ.get(name, "")
        if len(key) >= _SHORTEST_KEY:
            text = text.replace(key, _MASK)
    return text


def _without(secret: re.Match[str]) -> str:
    return f"{secret['scheme']}{_MASK}@" if secret["scheme"] else f"{secret['kept']}{_MASK}"


def masked_in(value: Any) -> Any:
    """`masked` for each text in a value of JSON, names of objects left as they are."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {name: masked_in(one) for name, one in value.items()}
    return [masked_in(one) for one in value] if isinstance(value, list | tuple) else value
