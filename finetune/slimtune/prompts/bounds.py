"""Jinja's sandbox with an end: templates come from strangers, and a sandbox bounds no loop.

Every value that a template holds has at most `TEXT` characters or entries, all that it contains
counted, so what is made of two is checked where it is made: before, where it is a product, and
after, where it is a sum. Loops and calls are steps of a budget.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import islice
from typing import Any, NoReturn

from jinja2 import Template, pass_eval_context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from slimtune.errors import ExitCode, SlimTuneError
from slimtune.prompts.template_checks import CheckingGenerator

TEXT = 1 << 20  # characters beside eight times those of the conversation
STEPS = 2_000_000  # of loops and calls: a template that pairs all of 1,000 turns takes 1,000,000
SECONDS = 5.0  # of this thread; usual templates take 0.0001
_RANGE = 100_000  # jinja's own limit
_BITS = 4096  # of a whole number: 9**9**9 is computed in C, where nothing stops it
_LOOK = 256  # steps between two looks at the clock
_LARGE = 1 << 16  # characters of a text that is paid for: 64 a step
_PARTS = 64  # of what is joined at once; more are counted as they come
_SOURCE = 1 << 18  # characters of a template: the longest known ones have 30,000
_WIDE = re.compile(r"\d{5}|\*|\{[^}]*\{")  # of a format: '%99999d', '%*d', '{:{}}'
_WIDEST = 100  # characters or spaces of an indentation, digits to round to
_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs", "translate", "format_map"}
_GROWING = _PADDING | {"format", "join", "replace"}
# What they give is no larger than what they get, or is made piece by piece.
_HARMLESS = {"capitalize", "count", "d", "default", "first", "items", "last", "length", "lower"}
_HARMLESS |= {"reject", "rejectattr", "select", "selectattr", "string", "title", "trim", "upper"}
_LEFT_OUT = {"batch", "center", "pprint", "slice", "sum", "urlize", "wordwrap", "xmlattr"}

_ENDLESS, _TOO_LARGE = "it does not come to its end", "what it writes is too large"


class EndlessTemplate(SlimTuneError):
    """A template that would take all time or memory (exit 3): no row's fault, so none is dropped
    for it."""

    exit_code = ExitCode.INPUT

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"prompt template: {what}",
            why,
            "take --prompt-template chatml (or llama2, alpaca), or this model from who made it",
        )


def weight(value: Any, most: int) -> int:
    """Characters and entries that a value shows when it is written out, those of what it contains
    included; more than `most` is not counted to its end."""
    total, waiting = 0, [value]
    while waiting and total + len(waiting) <= most:
        one = waiting.pop()
        if isinstance(one, str):
            total += len(one)
            continue
        total += 1 + (one.bit_length() // 3 if isinstance(one, int) else 0)
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    return total + len(waiting)


class _Quiet(Namespace):
    """A namespace that holds others would be printed with all that they hold."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Buffer(list):
    """The parts of what a macro or `{% set %}` block makes: they are texts before they are one."""

    def __init__(self, require: Callable[[int], None]) -> None:
        super().__init__()
        self.size, self.require = 0, require

    def append(self, part: str) -> None:
        self.extend((part,))

    def extend(self, parts: Iterable[str]) -> None:
        for part in parts:
            self.size += len(part)
            self.require(self.size)
            super().append(part)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One template's sandbox, and what is left of its budget while it renders."""

    code_generator_class = CheckingGenerator

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.refused: EndlessTemplate | None = None
        self.start([])
        self.concat = self._concat
        self._jinjas = {name: one for name, one in self.filters.items() if name not in _LEFT_OUT}
        ours = {"format": self._format, "indent": self._indent, "join": self._join}
        ours |= {"replace": self._replace, "round": self._round, "tojson": self._tojson}
        usual = {
            name: one if name in _HARMLESS else self._filter(one)
            for name, one in (self._jinjas | ours).items()
        }
        checks = (self.counted, self.sized, self.joined, self.times, self.power, self.remainder)
        self.filters = usual | {f"_{one.__name__}": one for one in checks} | {"_list": list}
        self.globals |= {"namespace": _Quiet, "range": self._range}
        del self.globals["lipsum"]

    def compiled(self, source: str) -> Template:
        """The template of a source; EndlessTemplate for one that is far too long."""
        if len(source) > _SOURCE:
            self.refuse("it is no template", f"it has {len(source):,} characters")
        return self.from_string(source)

    def start(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Before each rendering: the budget is whole again, unless it was once overdrawn."""
        if self.refused is not None:
            raise self.refused
        self._messages, self._steps, self._next = messages, STEPS, STEPS - _LOOK
        self._started: float | None = None

    def refuse(self, what: str, why: str) -> NoReturn:
        """Raises EndlessTemplate, and at each later `start`."""
        self.refused = EndlessTemplate(what, why)
        raise self.refused

    def step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < self._next:
            self._look()

    def _look(self) -> None:
        now = time.thread_time()
        self._started = self._started or now
        self._next = self._steps - _LOOK
        if self._steps < 0:
            self.refuse(_ENDLESS, f"one conversation takes {STEPS:,} steps")
        if now - self._started > SECONDS:
            self.refuse(_ENDLESS, f"one conversation takes {SECONDS:g} s")

    def require(self, size: int) -> None:
        """EndlessTemplate for more characters than this conversation may have."""
        if size > TEXT and size > self._most():
            told = f"more than {TEXT:,} characters from a conversation"
            self.refuse(_TOO_LARGE, told)

    def _most(self) -> int:
        return TEXT + 8 * sum(len(str(one.get("content"))) for one in self._messages)

    def _weight(self, value: Any) -> int:
        return weight(value, self._most())

    # What the checks in a template call.

    def counted(self, values: Iterable[Any]) -> Iterable[Any]:
        """What a loop goes over; its steps are paid beforehand where it has a length."""
        try:
            count = len(values)  # type: ignore[arg-type]
        except TypeError:
            return self._each(values)
        self.step(count + 1)
        return values

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value

    def sized(self, value: Any) -> Any:
        """The value itself, where it is not too large."""
        kind = value.__class__
        if kind is str:
            if len(value) > _LARGE:
                self.require(len(value))
                self.step(len(value) // 64)
        elif kind is int:
            if value.bit_length() > _BITS:
                self._refuse_number()
        elif isinstance(value, str | list | tuple | dict):
            size = self._weight(value)
            self.require(size)
            self.step(size // 64)
        return value

    def joined(self, values: list[Any]) -> str:
        return self._concat([str(value) for value in self.sized(values)])

    def _concat(self, parts: Iterable[str]) -> str:
        parts = iter(parts)
        first = list(islice(parts, _PARTS))
        if len(first) == _PARTS:
            counted = self.buffer()
            counted.extend(first)
            counted.extend(parts)
            return "".join(counted)
        text = "".join(first)
        if len(text) > TEXT:
            self.require(len(text))
        return text

    def buffer(self) -> _Buffer:
        return _Buffer(self.require)

    def times(self, left: Any, right: Any) -> Any:
        for value, count in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(count, int):
                self.require(self._weight(value) * count)
        return self.sized(left * right)

    def power(self, base: Any, exponent: Any) -> Any:
        whole = isinstance(base, int) and isinstance(exponent, int)
        if whole and base.bit_length() * exponent > _BITS:
            self._refuse_number()
        return base**exponent

    def remainder(self, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            self._require_format(left, "%", right if isinstance(right, tuple) else (right,))
        return left % right

    def _refuse_number(self) -> NoReturn:
        self.refuse("it computes a number without end", f"more than {_BITS:,} binary digits")

    def _require_format(self, text: str, mark: str, values: Iterable[Any]) -> None:
        if _WIDE.search(text):
            self.refuse(_TOO_LARGE, f"the format {text[:40]!r} pads without end")
        longest = max((self._weight(value) for value in values), default=0)
        self.require(len(text) + text.count(mark) * longest)

    def _require_replacing(self, text: str, old: str, new: str) -> None:
        if (len(text) + 1) * len(new) > TEXT:  # else it is small however often `old` is found
            self.require(len(text) + text.count(old) * len(new))

    # Functions, methods and filters.

    def _range(self, *ends: int) -> range:
        counted = range(*ends)
        if len(counted[: _RANGE + 1]) > _RANGE:
            self.refuse(_ENDLESS, f"range{ends} has more than {_RANGE:,} numbers")
        return counted

    def call(self, context: Any, called: Any, /, *values: Any, **named: Any) -> Any:
        self.step()
        if getattr(called, "__name__", "") in _GROWING:
            values = self._grown(called, values, named)
        return self.sized(super().call(context, called, *values, **named))

    def _grown(self, method: Any, values: Sequence[Any], named: dict[str, Any]) -> Sequence[Any]:
        """The arguments of a text's method; EndlessTemplate where its result is too large."""
        name, text = method.__name__, getattr(method, "__wrapped__", method).__self__
        if name == "format":  # jinja has wrapped it
            self._require_format(text, "{", [*values, *named.values()])
        elif name == "replace" and len(values) > 1:
            self._require_replacing(text, *map(str, values[:2]))
        elif name == "join" and values:
            return [self._listed(values[0], text)]
        elif name in _PADDING:
            self.refuse(_TOO_LARGE, f"it pads texts with {name}, as no chat template needs to")
        return values

    def _listed(self, values: Iterable[Any], between: str) -> list[Any]:
        values = list(values)
        self.require(self._weight(values) + len(between) * len(values))
        return values

    def _filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def checked(*values: Any, **named: Any) -> Any:
            self.step()
            return self.sized(function(*values, **named))

        return checked

    def _replace(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        self._require_replacing(text, old, new)
        return text.replace(old, new, count)

    def _format(self, text: Any, *values: Any, **named: Any) -> str:
        self._require_format(str(text), "%", named.values() or values)
        return str(text) % (named or values)

    @pass_eval_context
    def _join(self, context: Any, values: Any, d: str = "", attribute: Any = None) -> str:
        return self._jinjas["join"](context, self._listed(values, str(d)), d, attribute)

    def _indent(self, text: str, width: int | str = 4, *which: bool, **named: bool) -> str:
        self._require_narrow(width)
        self.require(len(text) + (text.count("\n") + 1) * _WIDEST)
        return self._jinjas["indent"](text, width, *which, **named)

    def _round(self, value: float, precision: int = 0, *method: str, **named: str) -> float:
        self._require_narrow(precision)
        return self._jinjas["round"](value, precision, *method, **named)

    def _tojson(self, value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        """JSON as it is: jinja's own filter would escape it for HTML, unlike transformers'."""
        for one in more.values():
            self._require_narrow(one)
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    def _require_narrow(self, width: Any) -> None:
        if (abs(width) if isinstance(width, int) else self._weight(width)) > _WIDEST:
            self.refuse(_TOO_LARGE, f"an indentation or rounding of more than {_WIDEST} places")
