"""bfloat16 products between float32 sums: gradients, small adapters, when they are chosen."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, tiny_model, tiny_samples
from torch.nn import functional as F

from slimtune.models import compute, loading, mixed
from slimtune.models.compute import Compute
from slimtune.training import losses
from slimtune.training.batches import collate
from slimtune.training.forward import loss_parts, require_exact, supervised

LARGE = {"model_type": "llama", "hidden_size": 576}
ADAPTERS = {
    "plain": {},
    "dropout": {"lora_dropout": 0.5},
    "DoRA": {"use_dora": True},
    "head and embeddings": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "head and embeddings saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "norms and a layer saved": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["norm", "up_proj"],
    },
}


def adapted(family, *, half, options):
    """The same adapted model in float32 and mixed, of weights that both can hold."""
    model = tiny_model(family).bfloat16()
    if half:
        mixed.prepare(model)
    else:
        model.float()
    torch.manual_seed(3)
    names = {"target_modules": "all-linear"} | options
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **names))
    mixed.adapt(model)
    generator = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():
        if ".lora_" in name and weight.requires_grad:
            values = torch.randn(weight.shape, generator=generator) * 0.1
            weight.data.copy_(values.bfloat16())
    return model


def lesson(model, batch):
    """The mean loss of a batch and the gradients of all that learns."""
    positions = supervised(batch)
    targets = batch["labels"][0, positions + 1]
    torch.manual_seed(5)  # of the dropout
    parts = loss_parts(model, batch, positions, lambda z, r: losses.cross_entropy(z, targets[r]))
    loss = parts[0] / len(positions)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def require_alike(found, expected):
    (loss, gradients), (wanted, right) = found, expected
    assert loss == pytest.approx(wanted, rel=5e-3)
    assert gradients.keys() == right.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        both = gradient.flatten().float(), right[name].flatten()
        assert F.cosine_similarity(*both, dim=0) > 0.995, name
        assert both[0].norm() / both[1].norm() == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_of_every_family_are_those_of_float32(family):
    batch = collate(tiny_samples(6))
    half, wide = (adapted(family, half=half, options={}) for half in (True, False))
    require_alike(lesson(half, batch), lesson(wide, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_learns_whole_does_so_as_in_float32(family):
    batch, found = collate(tiny_samples(6)), []
    for half in (True, False):
        model = tiny_model(family)
        if half:
            mixed.learn(model)
        found.append(lesson(model, batch))
    require_alike(*found)


@pytest.mark.parametrize("kind", [name for name in ADAPTERS if name != "dropout"])
def test_what_is_no_plain_adapter_learns_as_well(kind):
    batch = collate(tiny_samples(6))
    half, wide = (adapted("llama", half=half, options=ADAPTERS[kind]) for half in (True, False))
    require_alike(lesson(half, batch), lesson(wide, batch))


def test_an_adapter_with_dropout_sees_a_part_of_its_input_and_learns():
    batch = collate(tiny_samples(6))
    model = adapted("llama", half=True, options=ADAPTERS["dropout"])
    dropped, gradients = lesson(model.train(), batch)
    whole, _ = lesson(model.eval(), batch)
    assert dropped != whole and all(one.any() for one in gradients.values())


def test_the_stream_between_layers_is_float32_and_products_are_bfloat16():
    model, seen = adapted("llama", half=True, options={}), {}
    for name, module in model.named_modules():
        if name.endswith(("layers.1", "up_proj", "q_proj")):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output.dtype})
            )
    lesson(model, collate(tiny_samples(2)))
    assert {seen[name] for name in seen if name.endswith("layers.1")} == {torch.float32}
    assert {seen[name] for name in seen if name.endswith("proj")} == {torch.bfloat16}


def test_packed_samples_cost_what_they_cost_alone():
    model = tiny_model("qwen3").bfloat16()
    mixed.prepare(model)
    require_exact(model, tiny_samples(2))


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_far_below_the_rounding_of_a_product_still_adds_up(bias):
    """A change of 1e-3 of values around 1, whose neighbours are 8e-3 apart: half of it was lost."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 512, bias=bias).bfloat16()
    model = torch.nn.ModuleDict({"layer": layer})
    model = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=["layer"]))
    plain = copy.deepcopy(model.base_model.model["layer"].base_layer).float()
    mixed.adapt(model)
    one = model.base_model.model["layer"]
    one.lora_A["default"].weight.data.fill_(0.125)
    one.lora_B["default"].weight.data.fill_(1e-3)
    inputs = (torch.randn(256, 64) * 4).bfloat16()
    inputs[:, 0] += 8 - inputs.float().sum(1)  # so that each row times A is near 1
    change = (one(inputs).float() - plain(inputs.float())).mean().item()
    wanted = (inputs.float().sum(1) * 0.125 * 1e-3).mean().item()
    assert change == pytest.approx(wanted, rel=0.15)


def test_norm_and_gate_have_the_gradients_of_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(8, 64, requires_grad=True)
    weight, upstream = (torch.rand(64) + 0.5).requires_grad_(), torch.randn(8, 64).bfloat16()
    mixed._Norm.apply(x, weight, 1e-5).backward(upstream)
    wide = [one.detach().double().requires_grad_() for one in (x, weight)]
    F.rms_norm(wide[0], (64,), wide[1], 1e-5).backward(upstream.double())
    for found, right in zip((x, weight), wide, strict=True):
        both = found.grad.flatten().double(), right.grad.flatten()
        assert F.cosine_similarity(*both, dim=0) > 0.9999
    gate, up = (torch.randn(8, 64).bfloat16().requires_grad_() for _ in range(2))
    mixed._Gated.apply(gate, up).backward(upstream)
    wide = [one.detach().double().requires_grad_() for one in (gate, up)]
    (F.silu(wide[0]) * wide[1]).backward(upstream.double())
    for found, right in zip((gate, up), wide, strict=True):
        assert torch.allclose(found.grad.double(), right.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_it_where_the_processor_has_it(monkeypatch, native, expected):
    monkeypatch.setattr(compute, "multiplies_bfloat16", lambda: native)
    decided = Compute.choose("cpu").on(LARGE)
    assert decided.dtype == getattr(torch, expected) and decided.mixed == native
    said = "AVX512-BF16" if native else "slow on this CPU"
    assert said in decided.explain()


def test_auto_leaves_small_and_unknown_models_and_what_was_set_alone(monkeypatch):
    monkeypatch.setattr(compute, "multiplies_bfloat16", lambda: True)
    small = Compute.choose("cpu").on(LARGE | {"hidden_size": 256})
    assert small.dtype == torch.float32 and "exact" in small.explain()
    for config in (LARGE | {"model_type": "gemma2"}, {"model_type": "gpt2"}):
        assert Compute.choose("cpu").on(config).dtype == torch.float32
    assert Compute.choose("cpu", "float32").on(LARGE).dtype == torch.float32
    assert Compute.choose("cpu", quantization="int8").on(LARGE).dtype == torch.float32
    assert not Compute.choose("cpu", "float32").learning_whole().on(LARGE).mixed


def test_what_learns_whole_keeps_float32_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(compute, "BFLOAT16_FROM", 32)
    tiny_model().save_pretrained(tmp_path)
    decided = Compute.choose("cpu").learning_whole()
    assert "float32 weights multiplied in bfloat16: this CPU" in decided.on(LARGE).explain()
    loaded = loading.load_model(tmp_path, decided)
    assert loaded.dtype == torch.float32 and mixed.numbers_of(loaded) == torch.bfloat16
    require_exact(loaded, tiny_samples(2))


def test_bfloat16_without_the_instructions_is_called_slow(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(compute, "multiplies_bfloat16", lambda native=native: native)
        said = Compute.choose("cpu", "bfloat16").explain()
        assert said.startswith("cpu, bfloat16: as set") and ("slow" in said) == (not native)


def test_a_loaded_model_computes_so_and_keeps_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(compute, "BFLOAT16_FROM", 32)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = loading.load_model(tmp_path, Compute.choose("cpu"))
    assert loaded.dtype == torch.bfloat16
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        exact, near = model(ids).logits, loaded(ids).logits.float()
    assert F.cosine_similarity(exact, near, dim=-1).min() > 0.999
    loaded.resize_token_embeddings(61, mean_resizing=False)  # for an adapter with words of its own
    written = loaded.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert written.shape == (1, 16)


def test_a_result_that_nobody_reads_is_not_multiplied_and_its_gradients_are_the_same():
    model = adapted("llama", half=True, options={"lora_dropout": 0.5})
    layer = model.get_base_model().model.layers[0].mlp.down_proj

    def gradients():
        inputs = torch.ones(1, 3, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
        torch.manual_seed(5)
        output = layer(inputs)
        return output, torch.autograd.grad(output.float().sum(), [inputs, *_trained(layer)])

    read, expected = gradients()
    with mixed.result_unread(layer):
        unread, found = gradients()
    assert read.any() and not unread.any() and unread.shape == read.shape
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(gradients()[0], read)
    with mixed.result_known(layer, read.detach()):
        again, found = gradients()
    assert torch.equal(again, read)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with mixed.result_known(layer, torch.full_like(read, 3)):
        assert gradients()[0].eq(3).all()  # it is what is given
    with mixed.result_unread(model):  # nothing of ours: left alone
        assert "forward" not in vars(model)


def _trained(module):
    return [one for one in module.parameters() if one.requires_grad]
