"""Every tensor of every type as llama.cpp's converter and llama-quantize write it, to the bit."""

import json
import platform

import pytest
from originals import DATA, originals
from recorded_tensors import FILE, digest, write_wide, write_wide_imatrix

from slimtune.export.gguf_writer import write_gguf
from slimtune.export.imatrix import read_imatrix
from slimtune.export.plan import Encoding
from slimtune.export.quant_types import QUANTIZATIONS

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="recorded on x86-64"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    return {"stories260K": DATA / "stories260K", "wide": write_wide(folder / "wide")}


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["wide", "wide+imatrix", *originals("stories260K", "stories260K")])
def test_all_tensors_are_llama_cpps(name, kind, models, tmp_path):
    model = models[name.removesuffix("+imatrix")]
    importance = None
    if name.endswith("+imatrix"):
        importance = read_imatrix(write_wide_imatrix(tmp_path / "imatrix.gguf"))
    encoding = Encoding(importance=importance, through_f16=True)
    write_gguf(model, tmp_path / "out.gguf", kind, encoding=encoding)
    assert digest(tmp_path / "out.gguf") == RECORDED[name][kind]
