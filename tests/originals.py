"""The real inputs that lie beside the project's own checkouts, as further parameters of tests.

    @pytest.fixture(params=["sample_tokenizer", *originals("llama2-tokenizer", "llama2_tokenizer")])

A clone has no such folder (their licences are their own), so every test also runs on something that
is made here: the sample's tokenizer and rows, models trained by a fixture, files written by a test.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT.parent / "shared"
DATA = FOLDER / "data"
CASES = FOLDER / "cases" / "data"


def originals(needed: str, *parameters: object) -> list[object]:
    """`parameters` where ../shared/data has what they need, none where it has not."""
    return list(parameters) if (DATA / needed).exists() else []
