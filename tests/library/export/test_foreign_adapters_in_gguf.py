"""Every kind of adapter that peft saves, merged on the way into a GGUF and read by llama.cpp."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_adapters import trained
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM

from slimtune.export.gguf_writer import write_file
from slimtune.export.plan import open_source
from slimtune.export.preflight import preflight
from slimtune.models.merging import MergedCheckpoint, merge_adapter

IDS = list(range(3, 35))
STARTS = [True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora"]
KINDS = {
    **{f"start_{start}": {"init_lora_weights": start} for start in STARTS},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa_dora": {"init_lora_weights": "pissa", "use_dora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 20}},
    "one_layer": {"layers_to_transform": [1]},
    "key_and_value": {"target_modules": r".*\.1\..*(k|v)_proj"},
    "all_linear": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "output_layer": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "saved_both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved_norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "trained_tokens": {"trainable_token_indices": [3, 90, 7]},
}
# In a process of its own, which llama.cpp may abort: one child for all files, a second each else.
ASK = """
import json, sys
from pathlib import Path
from slimtune.inference.llama_context import LlamaContext
ids = json.loads(sys.argv[1])
for name in sys.argv[2:]:
    [(_, found)] = LlamaContext(Path(name), 64, 1, 1, None).losses([(ids[:1], ids[1:])])
    print(json.dumps(found.nats), flush=True)
"""


@torch.no_grad()
def nats(model: torch.nn.Module) -> torch.Tensor:
    logits = model.float().eval()(torch.tensor([IDS])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(IDS[1:]), reduction="none")


def rounding(base: Path) -> float:
    """What rounding every weight once more to bf16 may do to a loss, three times over."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = nats(model)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1 + (torch.rand_like(weight) - 0.5) * 2**-7
    return 3 * (nats(model) - before).abs().max().item()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor], dict[str, list[float]]]:
    """The base, and the losses of each kind by peft and by llama.cpp from the written file."""
    folder = tmp_path_factory.mktemp("kinds")
    base = write_tiny_llama(folder / "base", hidden=64)
    by_peft, files = {}, {}
    for kind, settings in KINDS.items():
        adapter = trained(base, folder / kind, **settings)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        by_peft[kind] = nats(PeftModel.from_pretrained(model, adapter))
        files[kind] = folder / f"{kind}.gguf"
        write(base, adapter, files[kind])
    command = [sys.executable, "-c", ASK, json.dumps(IDS), *map(str, files.values())]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "finetune")}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = map(json.loads, said.stdout.splitlines())
    return base, by_peft, dict(zip(files, lines, strict=True))


def write(base: Path, adapter: Path, file: Path) -> None:
    """Merged on the way where that can be, else from the folder that the refusal sends one to."""
    if MergedCheckpoint(base, adapter).streams:
        with open_source(base, adapter) as source:
            write_file({file: preflight(source, "BF16")})
        return
    merged = adapter.with_name(f"{adapter.name}-merged")
    merge_adapter(base, adapter, merged)
    with open_source(merged) as source:
        write_file({file: preflight(source, "BF16")})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_expects_what_peft_expects(kind, world) -> None:
    base, by_peft, by_llama_cpp = world
    off = (by_peft[kind] - torch.tensor(by_llama_cpp[kind])).abs().max()
    assert off <= rounding(base)
    assert (by_peft[kind] - nats(AutoModelForCausalLM.from_pretrained(base))).abs().max() > off
