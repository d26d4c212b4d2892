"""The README's pictures: the models of a table by size and exact match, a file for each language.

    python benchmarks/picture.py

They are the picture of a report, on white paper of its own. Figures are those of the tables under
"A real model" and "What a run shows", so picture and table always agree; the upright lines are
Wilson's 95 % intervals of that many test rows. Dots are all of one size: the speed that a report
draws is one of a machine and an hour. The files lie in `.github`, beside what else is GitHub's.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "finetune"))

from slimtune.evaluation.bootstrap import wilson
from slimtune.report import size_picture as pictures
from slimtune.report.words import LANGUAGES

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SECTIONS = {"real_model": "A real model", "quickstart": "What a run shows"}
FILES = {
    (section, language): ROOT / f".github/{name}{ending}.svg"
    for name, section in SECTIONS.items()
    for language, ending in (("en", ""), ("zh", ".zh-CN"))
}
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_CSS = Path(pictures.__file__).with_name("page.css")
_USED = r"^(?::root|svg (?:text|polyline|\.)|\.(?:grid|rule|leader|whisker|front|dot)\b).*?\}$"
_FONT = 'svg { font: 12.5px system-ui, "Segoe UI", "PingFang SC", "Noto Sans CJK SC", sans-serif; }'


def main() -> None:
    for (section, language), file in FILES.items():
        file.write_text(drawn(section, language), encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")


def drawn(section: str, language: str) -> str:
    """The wide drawing of a report, as an SVG file by itself."""
    figure = pictures.size_picture(list(models(section)), LANGUAGES[language])
    title = re.search("<figcaption>(.*?)</figcaption>", figure)[1]
    width, height, shapes = re.search(
        r'<svg class="wide" viewBox="0 0 (\d+) (\d+)"[^>]*>(.*?)</svg>', figure, re.S
    ).groups()
    style = "\n".join([_FONT, *re.findall(_USED, _CSS.read_text("utf-8"), re.M | re.S)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n<title>{title}</title>\n'
        f"<style>\n{style}\n</style>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{shapes}\n</svg>\n'
    )


def models(section: str) -> Iterator[dict[str, Any]]:
    """The table of a section, as far as the picture reads what a comparison measured."""
    text = README.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    trials = int(re.search(r"([\d,]+) test rows", text)[1].replace(",", ""))
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    names, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        score = float(cells["exact match %"].split()[0])
        right = 100 * round(score * trials / 100) / trials
        low, high = wilson(right, trials)
        number, unit = cells["on disk"].split()
        yield {
            "label": cells["model"].replace("`", ""),
            "exact_match": {"score": score, "low": low, "high": high},
            "cost": {
                "bytes_on_disk": float(number) * _BYTES[unit],
                "generated_tokens_per_second": None,
            },
        }


if __name__ == "__main__":
    main()
