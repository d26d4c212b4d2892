"""What a setting takes, said of a value that it does not: in our words, not in pydantic's.

pydantic tells a failure for each type of a union, with names of its own for them
("Input should be greater than or equal to 1, or input should be 'auto'").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Context = Mapping[str, Any]
# By pydantic's type of error (pydantic_core.ErrorDetails): what it wanted.
_WANTED: dict[str, Callable[[_Context], str]] = {
    "greater_than": lambda told: f"a number above {told['gt']:,.12g}",
    "greater_than_equal": lambda told: f"a number of at least {told['ge']:,.12g}",
    "less_than": lambda told: f"a number below {told['lt']:,.12g}",
    "less_than_equal": lambda told: f"a number of at most {told['le']:,.12g}",
    "finite_number": lambda _: "a finite number",
    "literal_error": lambda told: str(told["expected"]).replace("'", "").replace(" or ", ", or "),
    "string_pattern_mismatch": lambda told: _like(told["pattern"]),
    "too_short": lambda told: f"a list of at least {told['min_length']}",
    "too_long": lambda told: f"a list of at most {told['max_length']}",
    "string_too_short": lambda _: "a text that is not empty",
    "none_required": lambda _: "null",
    "is_instance_of": lambda told: f"a {told['class']}",
}
# Those that tell nothing but a kind, by what their names begin with.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "dict": "settings by their names",
    "model": "settings by their names",
}
_NAME = r"^[\w.-]+$"


def _like(pattern: str) -> str:
    if pattern == _NAME:
        return "a name of letters, digits, dots, dashes and underscores"
    return "a name as Ollama takes it, such as me/model:v1"


def expected(errors: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for all that pydantic says of one value: what it must be, or why it is refused.

    `errors` are those of ValidationError.errors() for the same setting.
    """
    own = [one["msg"] for one in errors if one["type"] in ("value_error", "assertion_error")]
    if own:
        said = own[0].removeprefix("Value error, ")
        return said[0].lower() + said[1:]
    wanted = dict.fromkeys(map(_wanted, errors))
    return f"it must be {', or '.join(wanted)}"


def _wanted(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind in _WANTED:
        return _WANTED[kind](error.get("ctx", {}))
    return _KINDS.get(kind.partition("_")[0], "another value")
