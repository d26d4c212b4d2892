"""Chat templates from strangers that would take all time or memory: refused in words, and soon."""

import pickle
import shutil
import time
from pathlib import Path

import pytest
from foreign_chat_templates import LLAMA3, MISTRAL_3, QWEN2
from running import refused

from slimtune import prompts
from slimtune.errors import InputError, SettingsError
from slimtune.prompts import bounds, render
from slimtune.prompts.bounds import EndlessTemplate

pytestmark = pytest.mark.faults

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
ENDLESS, LARGE = "does not come to its end", "too large"
DOUBLES = "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = %s %}{% endfor %}"
TEMPLATES = {
    "ten thousand million steps": (
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        ENDLESS,
    ),
    "a range": ("{% for a in range(10**10) %}{% endfor %}", "range(10000000000,) has more"),
    "loops in a macro": (
        "{% macro f() %}{% for a in range(90000) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
        ENDLESS,
    ),
    "a macro": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls itself without end"),
    "a block": ("{% block a %}{{ self.a() }}{% endblock %}", "calls itself without end"),
    "a recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself"),
    "a text times a number": ("{{ 'x' * 10**10 }}", LARGE),
    "a number times a text": ("{{ 10**10 * 'x' }}", LARGE),
    "a list times a number": ("{{ [1] * 10**10 }}", LARGE),
    "a power": ("{{ 9 ** (9 ** 9) }}", "a number without end"),
    "squares": (DOUBLES.replace("'xx'", "9").replace("%s", "ns.x * ns.x"), "a number without end"),
    "doubled by +": (DOUBLES.replace("%s", "ns.x + ns.x"), LARGE),
    "doubled by ~": (DOUBLES.replace("%s", "ns.x ~ ns.x"), LARGE),
    "doubled by %": (DOUBLES.replace("%s", "'%s%s' % (ns.x, ns.x)"), LARGE),
    "doubled by format": (DOUBLES.replace("%s", "'{0}{0}'.format(ns.x)"), LARGE),
    "doubled by join": (DOUBLES.replace("%s", "''.join([ns.x, ns.x])"), LARGE),
    "doubled by replace": (DOUBLES.replace("%s", "ns.x.replace('x', 'xx')"), LARGE),
    "doubled in a block": (
        "{% set x = 'xx' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
        LARGE,
    ),
    "doubled by macros": (
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{{ " + "f(" * 40 + "'xx'" + ")" * 40 + " }}",
        LARGE,
    ),
    "long parts of the whole": (
        "{% set x = 'x' * 999999 %}{% for i in range(99999) %}{{ x + 'y' }}{% endfor %}",
        LARGE,
    ),
    "lists of lists": (
        "{% set a = [1] %}" + "{% set a = [a, a, a, a, a] %}" * 20 + "{{ a }}",
        LARGE,
    ),
    "names of names": (
        "{% set a = dict(x=1) %}" + "{% set a = dict(x=a, y=a) %}" * 50 + "{{ a | tojson }}",
        LARGE,
    ),
    "two equal lists": (
        "{% set a = [1] %}{% set b = [1] %}"
        + "{% set a = [a, a] %}{% set b = [b, b] %}" * 40
        + "{{ a == b }}",
        LARGE,
    ),
    "padding": ("{{ 'x'.ljust(10**10) }}", "ljust"),
    "a wide format": ("{{ '%9999999999d' % 1 }}", "pads without end"),
    "a wide format by name": ("{{ '{:>{w}}'.format(1, w=10**10) }}", "pads without end"),
    "a wide format of a filter": ("{{ '%*d' | format(10**10, 1) }}", "pads without end"),
    "an indentation": ("{{ 'a\nb' | indent(10**10) }}", "more than 100 places"),
    "an indentation of JSON": ("{{ messages | tojson(indent=10**10) }}", "more than 100 places"),
    "places of a number": ("{{ 1.5 | round(10**9, 'ceil') }}", "more than 100 places"),
    "joined by a filter": ("{{ ('x' * 99999) | join('y' * 99999) }}", LARGE),
    "replaced by a filter": ("{{ ('x' * 99999) | replace('x', 'y' * 99999) }}", LARGE),
    "no template at all": ("x" * 300_000, "it has 300,000 characters"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_without_end_is_refused(kind, monkeypatch) -> None:
    source, words = TEMPLATES[kind]
    monkeypatch.setattr(bounds, "STEPS", 300_000)
    before = time.process_time()
    with pytest.raises(EndlessTemplate, match="prompt template: ") as error:
        render(TURNS, source, **TOKENS)
    assert words in str(error.value) and error.value.exit_code == 3
    with pytest.raises(EndlessTemplate):  # the second row is not waited for again
        render(TURNS, source, **TOKENS)
    assert time.process_time() - before < 5


def test_a_slow_template_is_refused_by_the_clock(monkeypatch) -> None:
    """2**100 calls, never more than 100 within each other."""
    monkeypatch.setattr(bounds, "SECONDS", 0.05)
    macro = "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}"
    with pytest.raises(EndlessTemplate, match=r"one conversation takes 0\.05 s"):
        render(TURNS, macro + "{{ f(100) }}", **TOKENS)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("{{ 1 + 'a' }}", InputError, "TypeError"),
        ("{{ 1 / 0 }}", InputError, "ZeroDivisionError"),
        ("{% for x in 5 %}{% endfor %}", InputError, "not iterable"),
        ("{% include '/etc/passwd' %}", InputError, "no loader"),
        ("{{ ''.__class__.__mro__ }}", InputError, "unsafe"),
        ("{{ lipsum(n=10**9) }}", InputError, "'lipsum' is undefined"),
        ("{{ 'x' | center(10**10) }}", SettingsError, "No filter named 'center'"),
        ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", SettingsError, "nests too deeply"),
        ("{% if 1 %}" * 200 + "{% endif %}" * 200, SettingsError, "nests too deeply"),
    ],
)
def test_what_a_template_gets_wrong_is_no_bug_of_ours(source, error, words) -> None:
    with pytest.raises(error, match=words):
        render(TURNS, source, **TOKENS)


@pytest.mark.parametrize("source", [LLAMA3, MISTRAL_3, QWEN2, *map(prompts.template, ["llama2"])])
def test_a_long_conversation_is_rendered_all_the_same(source) -> None:
    """A row of a book, and one of a thousand turns."""
    book = [{"role": "user", "content": "word " * 1_000_000}, TURNS[1]]
    assert len(render(book, source, **TOKENS)) > 5_000_000
    assert render(TURNS * 500, source, **TOKENS).count("Why?") == 500


def test_the_checks_change_nothing_that_is_rendered() -> None:
    """Operators, filters and loops of ordinary templates, as Python has them."""
    source = (
        "{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% for c in m.content %}"
        "{% set ns.n = ns.n + loop.index0 % 2 * 3 %}{% endfor %}"
        "{% set ns.text = ns.text ~ m.role[:1] + '-' * 3 %}{% endfor %}"
        "{{ ns.n }}|{{ ns.text }}|{{ 2 ** 10 }}|{{ '%s: %d' % ('a', 7) }}|"
        "{{ 'b' | indent(2, true) }}|"
        "{{ messages | map(attribute='role') | join('+') }}|{{ 'xaxa' | replace('a', 'b', 1) }}|"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
        "{{ {'a': [1, none]} | tojson }}|{{ 2.5 | round }}|{{ 'a,b'.split(',') | last }}|"
        "{{ '{}!'.format('c') }}|{{ [1] + [2] }}|{{ messages[1:] | length }}|{{ 'x' * 0 }}"
    )
    assert render(TURNS, source, **TOKENS) == (
        '9|u---a---|1024|a: 7|  b|user+assistant|xbxa|1|{"a": [1, null]}|2.0|b|c!|[1, 2]|1|'
    )


@pytest.fixture
def endless(project: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(project / "base", tmp_path / "endless")
    (folder / "chat_template.jinja").write_text(TEMPLATES["a macro"][0], encoding="utf-8")
    return folder


def test_scripts_say_so_before_the_work(endless, settings, rows, tmp_path) -> None:
    words = {
        "prepare_data": "--base-model",
        "train_lora": "--base-model",
        "model_pruning": "--model-path",
        "convert_to_gguf": "--model-path",
    }
    for script, flag in words.items():
        out = ("--output-dir", tmp_path / script)
        error = refused(3, "prompt template: ", script, *settings, flag, endless, *out)
        assert "calls itself without end" in error[0]


def test_its_words_come_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(EndlessTemplate("a template", "it never ends")))
    assert str(error) == str(EndlessTemplate("a template", "it never ends"))
    assert type(error) is EndlessTemplate and error.exit_code == 3
