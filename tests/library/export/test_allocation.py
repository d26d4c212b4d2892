"""Types for given bytes, bits or loss: what is written, how well it is told, what is refused."""

import ctypes
from dataclasses import replace

import gguf
import numpy as np
import pytest

from slimtune.config import Config
from slimtune.errors import SettingsError
from slimtune.export import allocation, feedback
from slimtune.export.ggml import Encoder, find_encoder
from slimtune.export.gguf_writer import header_bytes, write_file
from slimtune.export.imatrix import Feedback, Sensitivity
from slimtune.export.plan import Encoding
from slimtune.export.preflight import preflight
from slimtune.export.quant_types import CANDIDATES
from slimtune.export.type_losses import type_losses
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.llama_library import shared_object


def asked(**target: object):
    return Config().gguf.model_copy(update=target)


@pytest.mark.parametrize("bits", [2.7, 4.5, 7.0])
def test_the_file_is_never_larger_and_llama_cpp_loads_it(plan, tmp_path, bits):
    """The size to the byte: header, padding and vectors included."""
    most = int(plan.parameters * bits / 8) + header_bytes(plan, "m")
    allocated = allocation.allocate(plan, asked(target_size=most), "m")
    (report,) = write_file({tmp_path / "m.gguf": allocated}, name="m")
    vectors = sum(4 * 256 + 0 for name in plan.tensors if not plan.is_matrix(name))
    exact = header_bytes(plan, "m") + vectors + allocated.allocation.bytes
    assert report.bytes == (tmp_path / "m.gguf").stat().st_size == exact <= most
    assert exact > 0.99 * most
    types = {t.name: t.tensor_type for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name, option in allocated.allocation.options.items():
        assert types[name] == option.type
    with LlamaCpp(tmp_path / "m.gguf", context=32, threads=1) as model:
        ((_, found),) = model.losses([([1], [5, 9])])
        assert all(0 < nats < 100 for nats in found.nats)


def test_what_it_is_expected_to_lose_is_what_it_loses(plan, tmp_path):
    """½ Σ F D² over all rows of the written file, against the estimate from a sample of them."""
    allocated = allocation.allocate(plan, asked(target_bits=4.6), "m")
    write_file({tmp_path / "m.gguf": allocated}, name="m")
    write_file({tmp_path / "f.gguf": replace(plan, quantization="F32")}, name="m")
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "f.gguf").tensors}
    lost = 0.0
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        cost = plan.encoding.importance.sensitivity.get(tensor.name)
        if cost is None:
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        errors = values.astype(np.float64) - exact[tensor.name].data
        lost += 0.5 * cost.rows @ errors**2 @ cost.columns / cost.rows.sum()
    assert allocated.allocation.loss == pytest.approx(lost, rel=0.1)


def made_up(plan):
    """The plan, with inputs of which half can be told from the others: columns make up."""
    known = plan.encoding.importance
    costs, moments, dice = {}, {}, np.random.default_rng(1)
    for name, cost in known.sensitivity.items():
        parts = dice.normal(size=(len(cost.columns) // 256, 600, 256))
        parts[..., 1::2] += 2 * parts[..., ::2]
        inputs = parts * np.sqrt(cost.columns).reshape(-1, 1, 256)
        moments[name] = inputs.transpose(0, 2, 1) @ inputs / 600
        kept, pairs = feedback.packed(feedback.triangles(moments[name]))
        columns = moments[name].diagonal(axis1=1, axis2=2).reshape(-1).astype(np.float32)
        found = Feedback(kept, lambda pairs=pairs: pairs)
        costs[name] = replace(cost, columns=columns, feedback=found)
    known = replace(known, sensitivity=costs)
    return replace(plan, encoding=replace(plan.encoding, importance=known)), moments


def test_columns_make_up_for_each_other_and_the_loss_is_told(plan, tmp_path):
    """½ Σ rows_i d_i M d_iᵀ of the written file: less than without feedback, as much as told."""
    plan, moments = made_up(plan)
    allocated = allocation.allocate(plan, asked(target_bits=4.6), "m")
    bare = {n: replace(c, feedback=None) for n, c in plan.encoding.importance.sensitivity.items()}
    bare = replace(plan.encoding.importance, sensitivity=bare)
    without = replace(allocated, encoding=replace(plan.encoding, importance=bare))
    lost = []
    for one in (allocated, without):
        write_file({tmp_path / "m.gguf": one}, name="m")
        write_file({tmp_path / "f.gguf": replace(plan, quantization="F32")}, name="m")
        exact = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "f.gguf").tensors}
        lost.append(0.0)
        for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
            if tensor.name not in moments:
                continue
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            errors = values.astype(np.float64) - exact[tensor.name].data
            parts = errors.reshape(len(errors), -1, 256)
            each = np.einsum("rpi,pij,rpj->r", parts, moments[tensor.name], parts)
            rows = plan.encoding.importance.sensitivity[tensor.name].rows
            lost[-1] += 0.5 * float(rows @ each / rows.sum())
    assert lost[0] < 0.85 * lost[1]
    assert allocated.allocation.loss == pytest.approx(lost[0], rel=0.25)


def test_named_types_are_llama_cpps_own_whatever_was_measured(plan, tmp_path):
    known, _ = made_up(plan)
    for place, one in enumerate((plan, known)):
        write_file({tmp_path / f"{place}.gguf": replace(one, quantization="Q4_K_M")}, name="m")
    assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()


def test_a_matrix_that_costs_more_gets_more_bits(plan):
    costs = dict(plan.encoding.importance.sensitivity)
    name = "blk.1.ffn_up.weight"
    costs[name] = Sensitivity(1e4 * costs[name].rows, 1e4 * costs[name].columns)
    known = replace(plan.encoding.importance, sensitivity=costs)
    dear = replace(plan, encoding=replace(plan.encoding, importance=known))
    bits = [
        allocation.allocate(one, asked(target_bits=4.6), "m").allocation.options[name].bytes
        for one in (plan, dear)
    ]
    assert bits[1] > 1.4 * bits[0]


def test_the_fewest_bytes_for_a_loss(plan):
    tight = allocation.allocate(plan, asked(max_loss=0.5), "m").allocation
    wide = allocation.allocate(plan, asked(max_loss=5.0), "m").allocation
    assert tight.loss <= 0.5 and wide.loss <= 5.0 and wide.bytes < tight.bytes
    same = allocation.allocate(plan, asked(target_size=_whole(plan, wide)), "m").allocation
    assert same.loss == pytest.approx(wide.loss, rel=0.02)


def _whole(plan, found) -> int:
    return header_bytes(plan, "m") + 5 * 1024 + found.bytes


def test_a_loss_that_nothing_meets_names_the_least(plan):
    with pytest.raises(SettingsError, match="nothing loses so little") as error:
        allocation.allocate(plan, asked(max_loss=1e-30), "m")
    least = float(error.value.cure.split()[1].rstrip(","))
    assert allocation.allocate(plan, asked(max_loss=least), "m").allocation.loss <= least


@pytest.mark.parametrize("target", [{"target_size": 1000}, {"target_bits": 1.5}])
def test_below_the_smallest_it_is_named_and_can_be_had(plan, target):
    small = allocation.smallest(plan)
    with pytest.raises(SettingsError, match="cannot be so small") as error:
        allocation.require_possible(small, asked(**target), "m")
    word = error.value.cure.split()[1].rstrip(",")
    (name,) = target
    possible = asked(**{name: float(word) if name == "target_bits" else int(word)})
    allocation.require_possible(small, possible, "m")
    found = allocation.allocate(plan, possible, "m").allocation
    assert {option.type.name for option in found.options.values()} == {"Q2_K"}


def test_above_f16_it_is_f16_and_said(plan, caplog):
    caplog.set_level("INFO")
    found = allocation.allocate(plan, asked(target_size=10**9), "m")
    assert found.types == {"F16": 16, "F32": 5}
    assert "larger than that it does not become" in caplog.text
    assert found.file_type == gguf.LlamaFileType.MOSTLY_F16


def test_without_gradients_no_loss_is_told(plan, caplog):
    inputs = {n: np.ones(plan.shape(n)[1], np.float32) for n in plan.tensors if plan.is_matrix(n)}
    bare = replace(plan.encoding.importance, sensitivity={}, weights=inputs)
    plan = replace(plan, encoding=replace(plan.encoding, importance=bare))
    found = allocation.allocate(plan, asked(target_bits=4.6), "m")
    assert found.allocation.loss is None and "no loss can be told" in caplog.text
    assert "loss" not in str(allocation.recorded(found.allocation)["tensors"])
    with pytest.raises(SettingsError, match="nobody can tell"):
        allocation.allocate(plan, asked(max_loss=0.1), "m")


def test_another_models_sensitivity_is_refused(plan, narrow):
    other = preflight(narrow, "F16", encoding=plan.encoding)
    with pytest.raises(Exception, match="another model's"):
        allocation.allocate(other, asked(target_bits=9.0), "m")


def test_without_the_library_only_types_that_numpy_encodes(llama, plan):
    encoding = Encoding(Encoder(None), plan.encoding.importance)
    alone = replace(preflight(llama, "F16", encoding=Encoding(Encoder(None))), encoding=encoding)
    found = allocation.allocate(alone, asked(target_bits=6), "m")
    assert not found.needs_tool
    assert set(found.types) <= {"F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}


def test_types_that_cannot_hold_the_values_are_left_out(plan, monkeypatch):
    read = plan.checkpoint.read_float32
    monkeypatch.setattr(plan.checkpoint, "read_float32", lambda *words: read(*words) * 1e6)
    options = type_losses(plan)["blk.0.ffn_up.weight"]
    assert gguf.GGMLQuantizationType.F16 not in {option.type for option in options}


def test_no_candidate_needs_an_importance_matrix():
    library = ctypes.CDLL(str(shared_object()))
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    assert library.ggml_quantize_requires_imatrix(int(gguf.GGMLQuantizationType.IQ2_XXS))
    assert not any(library.ggml_quantize_requires_imatrix(int(kind)) for kind in CANDIDATES)


@pytest.mark.parametrize("kind", CANDIDATES, ids=lambda kind: kind.name)
def test_ggml_decodes_as_numpy_does(kind):
    encoder = find_encoder()
    rows = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    encoder.prepare(kind)
    encoded = encoder.encode(rows, kind)
    ours = encoder.decode(encoded, kind, rows.shape)
    assert ours == pytest.approx(Encoder(None).decode(encoded, kind, rows.shape), abs=1e-6)
    assert np.abs(ours - rows).mean() < 0.4
