"""The tokenizer guard: SentencePiece ids as llama.cpp gives them, pad never EOS, nothing lost."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import spm_cases
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slimtune.errors import InputError
from slimtune.models import sentencepiece_bpe, tokenizers

WORLD = [
    "Once upon a time there was a small house.",
    "def area(r):\n    return 3.14 * r ** 2",
    "今天天气很好，我们去公园散步。",
    "  two spaces, then a\ttab and    four spaces",
] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with nothing but a tiny Llama-style `tokenizer.model`."""
    folder = tmp_path_factory.mktemp("spm")
    text = folder / "text.txt"
    text.write_text("\n".join(WORLD), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return folder


@pytest.fixture(scope="module")
def reference(folder) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


TEXTS = [*WORLD[:4], "    indented", "a  b   c", "\n\n", "unseen: żółć 🦙", " leading", "trailing "]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_decoding_equal_sentencepiece(folder, reference, text):
    tokenizer = tokenizers.load_tokenizer(folder)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == text


def test_merges_are_put_in_order_once_a_run(folder, tmp_path):
    """Of 32,000 pieces that is two fifths of the time in which they are read."""
    sentencepiece_bpe._merges.cache_clear()
    first = tokenizers.load_tokenizer(folder)
    again = tokenizers.load_tokenizer(shutil.copytree(folder, tmp_path / "copy"))
    assert sentencepiece_bpe._merges.cache_info().misses == 1
    first.add_tokens(["<more>"])
    assert len(again) == len(tokenizers.load_tokenizer(folder)) == len(first) - 1


def test_bos_once_and_special_tokens_are_parsed(folder):
    tokenizer = tokenizers.load_tokenizer(folder)
    assert tokenizer("").input_ids == [1]
    assert tokenizer("</s><s>", add_special_tokens=False).input_ids == [2, 1]


@pytest.mark.parametrize("name", spm_cases.NAMES)
def test_texts_that_tokenizers_get_wrong(name):
    cases = spm_cases.cases(name)
    tokenizer = tokenizers.load_tokenizer(cases.folder)
    for text, ids in cases:
        assert tokenizer(text, add_special_tokens=False).input_ids == ids, repr(text)
        assert tokenizer.decode(ids) == text
    first = tokenizer("[INST]", add_special_tokens=False).input_ids[0]
    assert tokenizer("<s>[INST]", add_special_tokens=False).input_ids[:2] == [1, first]


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_saved_folder_gives_equal_ids_in_plain_transformers(folder, tmp_path, model_type):
    tokenizer = tokenizers.load_tokenizer(folder)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizers.save_tokenizer(tokenizer, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": model_type}))
    plain = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    again = tokenizers.load_tokenizer(tmp_path / "out")
    for text in TEXTS:
        assert plain(text).input_ids == tokenizer(text).input_ids == again(text).input_ids
    assert plain.chat_template == again.chat_template == tokenizer.chat_template
    assert plain.pad_token == again.pad_token == "<unk>"
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["add_bos_token"] is True
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokenizer_model_is_copied_along(folder, tmp_path):
    tokenizers.save_tokenizer(tokenizers.load_tokenizer(folder), tmp_path)
    original = (folder / "tokenizer.model").read_bytes()
    assert (tmp_path / "tokenizer.model").read_bytes() == original


def test_source_names_the_tokenizer_model_of_a_foreign_tokenizer(folder, tmp_path):
    foreign = _json_only(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    tokenizers.save_tokenizer(foreign, tmp_path, source=folder)
    assert (tmp_path / "tokenizer.model").is_file()


def test_pad_equal_to_eos_in_the_config_is_replaced(folder, tmp_path):
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    config = {"eos_token": {"content": "</s>"}, "pad_token": "</s>", "model_max_length": 512}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    assert tokenizer.eos_token == "</s>" and tokenizer.pad_token == "<unk>"
    assert tokenizer.model_max_length == 512


def test_added_tokens_keep_their_ids_and_may_be_eos(folder, tmp_path):
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    config = {
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {
            "420": {"content": "<|im_start|>", "special": True},
            "421": {"content": "<|im_end|>", "special": True},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    assert tokenizer("<|im_end|>", add_special_tokens=False).input_ids == [421]
    assert tokenizer.eos_token_id == 421 and len(tokenizer) == 422


def test_added_token_with_an_impossible_id_is_refused(folder, tmp_path):
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": 32000}))
    with pytest.raises(InputError, match="should have id 32000"):
        tokenizers.load_tokenizer(tmp_path)


def test_added_tokens_keep_the_blanks_they_swallow(folder, tmp_path):
    """Phi-3's <|end|> takes the blanks after it along; its tokenizer_config.json says so."""
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    added = {"420": {"content": "<|end|>", "special": True, "rstrip": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    ids = tokenizers.load_tokenizer(tmp_path)("<|end|>\n a", add_special_tokens=False).input_ids
    assert (
        ids == tokenizers.load_tokenizer(tmp_path)("<|end|>a", add_special_tokens=False).input_ids
    )


def test_tokenizer_json_of_another_vocabulary_beside_the_model_is_refused(folder, tmp_path):
    tokenizers.save_tokenizer(tokenizers.load_tokenizer(folder), tmp_path)
    assert len(tokenizers.load_tokenizer(tmp_path)) == 420
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for change in ({"new_piece": 420}, {"▁a": 401, "▁b": 400}):
        other = json.loads(json.dumps(content))
        other["model"]["vocab"] |= change
        file.write_text(json.dumps(other), encoding="utf-8")
        with pytest.raises(InputError, match="two vocabularies"):
            tokenizers.load_tokenizer(tmp_path)
    file.unlink()
    assert len(tokenizers.load_tokenizer(tmp_path)) == 420


def test_wrong_merges_saved_beside_the_model_are_repaired(folder, reference, tmp_path):
    """transformers 5 orders merges by id when it reads a tokenizer.model, and saves them so."""
    tokenizers.save_tokenizer(tokenizers.load_tokenizer(folder), tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    file.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == reference.encode(text)
    tokenizers.save_tokenizer(tokenizer, tmp_path / "saved")
    repaired = json.loads((tmp_path / "saved/tokenizer.json").read_text(encoding="utf-8"))
    assert repaired["model"]["merges"] == content["model"]["merges"][::-1]


def test_a_file_that_only_bears_the_name_gives_way_to_tokenizer_json(tmp_path):
    original = _json_only(["<|begin|>", "<|eot|>", "<|pad|>"], eos_token="<|eot|>")
    original.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # Llama-3's tiktoken ranks
    assert tokenizers.load_tokenizer(tmp_path)("hello").input_ids == original("hello").input_ids


def test_a_file_of_another_kind_is_no_damage(tmp_path, caplog):
    original = _json_only(["<|begin|>", "<|eot|>", "<|pad|>"], eos_token="<|eot|>")
    original.save_pretrained(tmp_path)
    unigram = ModelProto()
    unigram.pieces.add(piece="a")
    unigram.trainer_spec.model_type = 1
    for content in (b"IQ== 0\nIg== 1\n", unigram.SerializeToString()):
        (tmp_path / "tokenizer.model").write_bytes(content)
        tokenizers.load_tokenizer(tmp_path)
    assert "caution" not in caplog.text


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "brackets", "folder"])
def test_a_damaged_model_file_is_told_once(damage, folder, tmp_path, caplog):
    """tokenizer.json decides then: what transformers writes there may give other ids."""
    tokenizers.save_tokenizer(tokenizers.load_tokenizer(folder), tmp_path)
    file = tmp_path / "tokenizer.model"
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        half, zeros = whole[: len(whole) // 2], bytes(len(whole))
        damaged = {"empty": b"", "half": half, "zeros": zeros, "brackets": b"[" * 100_000}
        file.write_bytes(damaged[damage])
    for _ in range(2):
        tokenizers.load_tokenizer(tmp_path)
    assert caplog.text.count("tokenizer.model is damaged: tokenizer.json decides") == 1


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_eos_is_what_the_own_template_ends_answers_with(tmp_path):
    """Qwen's base models: EOS and pad are <|endoftext|>, turns end with <|im_end|>."""
    original = _json_only(QWEN, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    original.chat_template = CHATML
    original.save_pretrained(tmp_path)
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    tokenizers.save_tokenizer(tokenizer, tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    assert (plain.eos_token, plain.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("<|im_end|>", "{{ eos_token }}"),
        CHATML.replace("\n{% endfor %}", "{{ eos_token }}{% endfor %}"),  # Phi-3 writes both
        "{{ raise_exception('System role not supported') }}",
        "{{ messages | nonsense }}",
        "no conversation at all",
    ],
)
def test_eos_stays_where_the_template_writes_it_or_cannot_say(template, tmp_path):
    original = _json_only(QWEN, eos_token="<|endoftext|>")
    original.chat_template = template
    original.save_pretrained(tmp_path)
    assert tokenizers.load_tokenizer(tmp_path).eos_token == "<|endoftext|>"


def test_of_several_chat_templates_the_default_is_taken(folder, tmp_path):
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert tokenizers.load_tokenizer(tmp_path).chat_template == "chat"


def test_tokenizer_json_alone_loads_as_it_is_with_a_guarded_pad(tmp_path):
    names = ["<|begin|>", "<|eot|>", "<|finetune_right_pad_id|>"]
    original = _json_only(names, bos_token="<|begin|>", eos_token="<|eot|>", pad_token="<|eot|>")
    original.save_pretrained(tmp_path)
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert tokenizer("hello").input_ids == original("hello").input_ids
    assert len(tokenizer) == len(original)


def test_no_token_left_for_padding_is_refused(tmp_path):
    _json_only(["<|eot|>"], eos_token="<|eot|>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no token can serve as padding"):
        tokenizers.load_tokenizer(tmp_path)


def test_normalising_sentencepiece_model_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(WORLD), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=150,
        minloglevel=2,
    )
    with pytest.raises(InputError, match="rewrites its input"):
        tokenizers.load_tokenizer(tmp_path)


def test_vocabulary_must_fit_the_embedding(folder):
    tokenizer = tokenizers.load_tokenizer(folder)
    tokenizers.check_vocabulary(tokenizer, 420)
    tokenizers.check_vocabulary(tokenizer, 512)
    with pytest.raises(InputError, match="420 ids, 419 rows"):
        tokenizers.check_vocabulary(tokenizer, 419)


@pytest.mark.parametrize("path", ["no/such/folder", "/no/such", "tests/missing"])
def test_missing_folder_is_an_input_error_without_asking_the_hub(path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(InputError, match="no such model folder"):
        tokenizers.load_tokenizer(path)


def test_folder_without_tokenizer_and_broken_json(tmp_path):
    with pytest.raises(InputError, match="no usable tokenizer"):
        tokenizers.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match="not a whole JSON object"):
        tokenizers.load_tokenizer(tmp_path)


def _json_only(names: list[str], **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges, as Llama-3 and Qwen ship theirs: `tokenizer.json` only."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(names)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
