"""Adapters that peft itself saved: merged, converted and evaluated as peft loads them, or refused.

The reference is always `PeftModel.from_pretrained` on the untouched base.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig, KasaConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from tiny_adapters import BOTH, loaded, trained
from transformers import LlamaConfig, LlamaForCausalLM

from slimtune.config import Config, Lora
from slimtune.errors import InputError, QualityError
from slimtune.evaluation.candidates import candidates_of
from slimtune.models import merge_proof
from slimtune.models.compute import Compute
from slimtune.models.loading import load_model
from slimtune.models.merging import MergedCheckpoint, merge_adapter
from slimtune.models.weights import Checkpoint
from slimtune.training import lora

torch.set_num_threads(1)
IDS = torch.arange(3, 35)[None]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    """A random bf16 Llama whose answers have winners."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.15,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "base"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def edited(adapter, **config):
    file = adapter / "adapter_config.json"
    kept = json.loads(file.read_text(encoding="utf-8")) | config
    file.write_text(json.dumps({k: v for k, v in kept.items() if v != "left out"}), "utf-8")
    return adapter


def with_tensors(adapter, change):
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    return adapter


@torch.no_grad()
def logits(model):
    """In float32: what is left of a difference is that of the weights."""
    return model.float().eval()(IDS).logits


def by_peft(base, adapter, rows=None):
    return logits(PeftModel.from_pretrained(loaded(base, rows), adapter))


def rounding(base, expected):
    """What rounding every weight once more to bf16 may do to these logits."""
    model = loaded(base, dtype=torch.float32)
    before = logits(model)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1 + (torch.rand_like(weight) - 0.5) * 2**-7
    return 3 * (logits(model) - before).abs().max().item() + 1e-5 * expected.abs().max().item()


STARTS = [True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora"]
KINDS = {
    **{f"start_{start}": {"init_lora_weights": start} for start in STARTS},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora_rslora": {"use_dora": True, "use_rslora": True},
    "pissa_rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa_dora": {"init_lora_weights": "pissa", "use_dora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 20}},
    "one_layer": {"layers_to_transform": [1]},
    "layers_pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "regular_expression": {"target_modules": r".*\.1\..*(k|v)_proj"},
    "all_linear": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "output_layer": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora_embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "saved_output": {"modules_to_save": ["lm_head"]},
    "saved_both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved_norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "trained_tokens": {"trainable_token_indices": [3, 90, 7]},
    "trained_tokens_by_name": {"trainable_token_indices": {"embed_tokens": [3, 90, 7]}},
    "velora": {"velora_config": VeloraConfig()},
    "kasa": {"kasa_config": KasaConfig()},
    "lora_bias": {"lora_bias": True},
    "replicated": {"layer_replication": [[0, 2], [1, 2]]},
}
GROWN = {
    "new_tokens": {},
    "new_saved_both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "new_saved_embedding": {"modules_to_save": ["embed_tokens"]},
    "new_trained_alone": {"trainable_token_indices": [96, 99]},
    "new_tied": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
}
# What no weights of this architecture can be, so that peft itself refuses the merge.
REFUSED = {"lora_bias", "replicated"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, *GROWN])
def test_merged_converted_and_evaluated_as_peft_has_it(kind, base, tmp_path):
    rows = 104 if kind in GROWN else None
    adapter = trained(base, tmp_path / "adapter", rows=rows, **(KINDS | GROWN)[kind])
    merged = tmp_path / "merged"
    if kind in REFUSED:
        with pytest.raises(InputError, match="peft cannot merge|layer_replication"):
            merge_adapter(base, adapter, merged)
        return
    expected = by_peft(base, adapter, rows)
    allowed = rounding(base, expected)
    report = merge_adapter(base, adapter, merged)
    assert (logits(loaded(merged)) - expected).abs().max() <= allowed
    evaluated = load_model(base, Compute.choose("cpu", "float32"), adapter=adapter)
    assert (logits(evaluated) - expected).abs().max() <= allowed
    source = MergedCheckpoint(base, adapter)
    assert source.streams == report.streamed
    if source.streams:  # what an export takes its weights from; the others it refuses
        written = Checkpoint(merged)
        assert source.tensors.keys() == written.tensors.keys()
        assert all(torch.equal(source.read(name), written.read(name)) for name in written.tensors)


@pytest.fixture
def plain(base, tmp_path):
    return trained(base, tmp_path / "adapter")


def gradients(model):
    """What `preprocess_loraga` leaves on the layers."""
    for name, module in model.named_modules():
        if name.endswith(tuple(BOTH)):
            module._peft_loraga_grad = torch.randn_like(module.weight)


def directions(model):
    """What `preprocess_corda` leaves on the layers, from the weight alone."""
    for name, module in model.named_modules():
        if name.endswith(tuple(BOTH)):
            u, s, v = torch.linalg.svd(module.weight.detach().float(), full_matrices=False)
            module.eigens = SimpleNamespace(U_WC=u[:, :4], S_WC=s[:4], V_WC=v[:4].T)


def settings(base, adapter):
    config = Config()
    model = config.model.model_copy(update={"base_model": str(base)})
    evaluation = config.evaluation.model_copy(update={"lora_model": adapter})
    return config.model_copy(update={"model": model, "evaluation": evaluation})


def refuses_everywhere(base, adapter, tmp_path, words):
    """Merge, conversion, evaluation and chat alike, and nothing is written."""
    compared = settings(base, adapter)
    for use in (
        lambda: merge_adapter(base, adapter, tmp_path / "merged"),
        lambda: MergedCheckpoint(base, adapter),
        lambda: candidates_of(compared),
    ):
        with pytest.raises(InputError, match=words):
            use()
    assert not (tmp_path / "merged").exists()


LOST = {
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "corda": {"init_lora_weights": "corda", "corda_config": CordaConfig(), "prepare": directions},
    "lora_ga": {
        "init_lora_weights": "lora_ga",
        "lora_ga_config": LoraGAConfig(),
        "prepare": gradients,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", LOST)
def test_what_peft_does_not_load_as_it_was_trained_is_refused_by_name(start, base, tmp_path):
    adapter = trained(base, tmp_path / "adapter", **LOST[start])
    refuses_everywhere(base, adapter, tmp_path, f"init_lora_weights: {start}")


@pytest.mark.parametrize("start", ["loftq", "something_new"])
def test_other_starts_are_refused_by_name_too(start, base, plain, tmp_path):
    refuses_everywhere(base, edited(plain, init_lora_weights=start), tmp_path, start)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_a_moved_base_is_no_matter_once_peft_has_converted_the_adapter(start, base, tmp_path):
    """The cure that the refusal names."""
    torch.manual_seed(1)
    model = loaded(base, dtype=torch.float32)
    lost = LOST.get(start, {"init_lora_weights": start})
    settings = {name: value for name, value in lost.items() if name != "prepare"}
    lost.get("prepare", lambda model: None)(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=BOTH, **settings))
    adapted.peft_config["default"].init_lora_weights = True  # as peft's own example has it
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    expected = logits(adapted)
    adapted.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    found = logits(loaded(tmp_path / "merged"))
    assert (found - expected).abs().max() <= rounding(base, expected)


NOT_UNDERSTOOD = [
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "a_key_of_2030",
]


@pytest.mark.parametrize("key", NOT_UNDERSTOOD)
def test_a_key_that_is_not_understood_is_refused_by_name(key, base, plain, tmp_path):
    refuses_everywhere(base, edited(plain, **{key: [1]}), tmp_path, key)


def test_a_key_of_a_later_peft_that_is_off_is_nothing(base, plain, tmp_path):
    edited(plain, a_key_of_2030=None, another=False)
    assert merge_adapter(base, plain, tmp_path / "merged").changed == 4


@pytest.mark.parametrize("left_out", ["lora_alpha", "r", "rank_pattern", "use_rslora"])
@pytest.mark.filterwarnings("ignore")
def test_what_the_config_leaves_out_is_pefts_default(left_out, base, tmp_path):
    adapter = trained(base, tmp_path / "adapter", r=8, lora_alpha=8)
    edited(adapter, **{left_out: "left out"})
    expected = by_peft(base, adapter)
    merge_adapter(base, adapter, tmp_path / "merged")
    found = logits(loaded(tmp_path / "merged"))
    assert (found - expected).abs().max() <= rounding(base, expected)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"r": 8}, "has rank 4"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank 4"),
        ({"r": "4"}, "r in adapter_config.json"),
        ({"r": 0}, "r in adapter_config.json"),
        ({"lora_alpha": "8"}, "lora_alpha in adapter_config.json"),
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(wrong, words, base, plain, tmp_path):
    refuses_everywhere(base, edited(plain, **wrong), tmp_path, words)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
SPOILED = {
    "does not begin with": lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()},
    "is empty": lambda t: t | {NAME: torch.empty(0)},
    "holds no tensor": lambda t: {},
    "changes nothing": lambda t: {k: v * (".lora_B" not in k) for k, v in t.items()},
}


@pytest.mark.parametrize("words", SPOILED)
def test_tensors_that_peft_would_pass_over_are_refused(words, base, plain, tmp_path):
    refuses_everywhere(base, with_tensors(plain, SPOILED[words]), tmp_path, words)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("tensors missing", lambda t: {k: v for k, v in t.items() if "layers.1" not in k}),
        (
            "nothing uses",
            lambda t: t | {NAME.replace("q_proj.lora_B", "k_proj.lora_B"): t[NAME].clone()},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_and_config_must_name_the_same_modules(words, change, base, plain, tmp_path):
    with_tensors(plain, change)
    with pytest.raises(InputError, match=words):
        merge_adapter(base, plain, tmp_path / "merged")
    with pytest.raises(InputError, match=words):
        load_model(base, Compute.choose("cpu", "bfloat16"), adapter=plain)


def test_modules_that_the_config_does_not_target_are_refused(base, tmp_path):
    """peft would leave its tensors out without a word."""
    adapter = edited(trained(base, tmp_path / "adapter"), target_modules=["q_proj"])
    with pytest.raises(InputError, match="nothing uses .*down_proj"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_changed_counts_what_really_differs(base, plain, tmp_path):
    still = "layers.1.mlp.down_proj.lora_B"
    with_tensors(plain, lambda t: {k: v * (still not in k) for k, v in t.items()})
    assert merge_adapter(base, plain, tmp_path / "merged").changed == 3


def test_an_adapter_below_the_rounding_of_the_base_changes_nothing(base, plain, tmp_path):
    with_tensors(plain, lambda t: {k: v * 1e-12 for k, v in t.items()})
    with pytest.raises(InputError, match="changes nothing"):
        merge_adapter(base, plain, tmp_path / "merged")


@pytest.mark.parametrize("kind", ["rslora", "dora", "embedding", "trained_tokens", "start_pissa"])
@pytest.mark.filterwarnings("ignore")
def test_a_merge_that_is_not_pefts_is_exit_5(kind, base, tmp_path, monkeypatch):
    """A value off by four roundings, anywhere among those that are looked at."""
    adapter = trained(base, tmp_path / "adapter", **KINDS[kind])
    changed = set(MergedCheckpoint(base, adapter).touched)
    read = Checkpoint.read

    def wrong(self, name, start=0, stop=None):
        rows = read(self, name, start, stop)
        return rows * 1.03 if self.folder.name == "merged" and name in changed else rows

    monkeypatch.setattr(Checkpoint, "read", wrong)
    with pytest.raises(QualityError, match="under peft"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_an_exports_weights_are_held_against_peft_too(base, plain, monkeypatch):
    source = MergedCheckpoint(base, plain)
    merge_proof.require_as_peft(source, source)
    monkeypatch.setattr(type(source.lora), "scale", lambda self, module: 4.0)  # it is 2
    other = MergedCheckpoint(base, plain)
    with pytest.raises(QualityError, match="under peft"):
        merge_proof.require_as_peft(other, other)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_checkpoint_of_a_stopped_run_of_ours(start, base, tmp_path):
    """Only at its end does a run write the adapter relative to the base as it is on disk."""
    chosen = Lora(rank=4, alpha=8, target_modules=["q_proj"], initialisation=start)
    model = lora.attach(loaded(base), chosen, seed=1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02
    model.save_pretrained(tmp_path / "checkpoint-2")
    if start == "pissa":  # the fast one
        with pytest.raises(InputError, match="--resume"):
            merge_adapter(base, tmp_path / "checkpoint-2", tmp_path / "merged")
        return
    expected = logits(model)
    merge_adapter(base, tmp_path / "checkpoint-2", tmp_path / "merged")
    found = logits(loaded(tmp_path / "merged"))
    assert (found - expected).abs().max() <= rounding(base, expected)
