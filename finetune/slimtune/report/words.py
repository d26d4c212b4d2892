"""The report's words in each language. The templates hold what is the same in every report."""

from dataclasses import dataclass

from slimtune.evaluation import measures_explained
from slimtune.evaluation.measures_explained import Measure


@dataclass(frozen=True)
class Words:
    """Sentences take their figures by name (`str.format`); headers are those of one table each."""

    not_run: str
    not_evaluated: str
    verdict: str
    alone: str
    smallest: str
    trusted: str
    doubted: str
    verdicts: dict[str, str]
    measure: tuple[str, str]
    setting: tuple[str, str]
    curve: tuple[str, str, str]
    measures: dict[str, Measure]
    stage_measures: dict[str, str]
    explained: tuple[str, str]
    compared: str
    stages: tuple[str, ...]
    leakage: str
    leakage_unknown: str
    legend: str
    extracted: str
    took: str
    rows: str
    signatures: str
    prompt: str
    reference: str
    no_gguf: str
    loss: str
    unpaired: str
    no_warnings: str
    no_commands: str
    machine: str


ENGLISH = Words(
    not_run="This stage was not run. It is run by `{command}`.",
    not_evaluated="**Not evaluated yet.** `{command}` compares the models and fills this report.",
    verdict="**{label}** answers {score:.1f} % of {rows} test rows exactly right, {first} "
    "{first_score:.1f} %: **{verdict}** (95 % interval of {label}: {low:.1f} to {high:.1f} %).",
    alone="**{label}** answers {score:.1f} % of {rows} test rows exactly right "
    "(95 % interval {low:.1f} to {high:.1f} %); nothing was compared with it.",
    smallest="The smallest file is **{label}**: {size}, {share:.0f} % of {first}'s {first_size}; "
    "it answers {score:.1f} % exactly right.",
    trusted="Nothing suspicious was noticed.",
    doubted="**Read the warnings below ({count})** before relying on these figures.",
    verdicts={
        "better": "better",
        "worse": "worse",
        "no clear change": "no clear change",
    },
    measure=("measure", "value"),
    setting=("setting", "value"),
    curve=("step", "training loss", "validation loss"),
    measures=measures_explained.ENGLISH,
    stage_measures={},  # a run.json names them in English already
    explained=("measure", "what it says"),
    compared="measure",
    stages=("stage", "seconds", "peak memory"),
    leakage="Of {rows} test questions {leaked} ({share:.1f} %) are among the {training_rows:,} "
    "training rows too.",
    leakage_unknown="The training rows were not at hand (training.train_data), so it is not known "
    "how many test questions are among them.",
    legend="In brackets the 95 % interval. Against the first model: ▲ better, ▼ worse, ≈ no clear "
    "change. ↑ more is better, ↓ less is better, → nearer to 1 is better; – cannot be compared.",
    extracted="Exact match compares what the pattern `{extract}` finds, where a row names none.",
    took="Run as `{command}`.",
    rows="{rows} test rows, answers of at most {max_new_tokens} tokens, greedy. "
    "The first model is the baseline.",
    signatures="BLEU `{bleu}`; chrF `{chrf}`.",
    prompt="question",
    reference="reference",
    no_gguf="No GGUF file was compared.",
    loss="**{label}** against **{source}**: exact match {exact:+.1f} points, perplexity × "
    "{perplexity:.3f}, file {share:.0f} % of the size.",
    unpaired="**{label}** was compared without the model it was made from, so its loss is unknown.",
    no_warnings="None.",
    no_commands="No stage has left a record (`run.json`) yet.",
    machine="Machine: {machine}. Versions: {versions}. Source: {commit}.",
)

CHINESE = Words(
    not_run="这一步还没有运行。运行它的命令：`{command}`。",
    not_evaluated="**尚未评估。** `{command}` 会对比各模型并填写本报告。",
    verdict="**{label}** 在 {rows} 条测试数据上完全答对 {score:.1f} %，{first} 为 "
    "{first_score:.1f} %：**{verdict}**（{label} 的 95 % 区间：{low:.1f} 至 {high:.1f} %）。",
    alone="**{label}** 在 {rows} 条测试数据上完全答对 {score:.1f} %"
    "（95 % 区间 {low:.1f} 至 {high:.1f} %）；没有与其他模型对比。",
    smallest="最小的文件是 **{label}**：{size}，为 {first}（{first_size}）的 {share:.0f} %；"
    "完全答对 {score:.1f} %。",
    trusted="没有发现可疑之处。",
    doubted="**请先阅读下面的警告（{count} 条）**，再相信这些数字。",
    verdicts={"better": "更好", "worse": "更差", "no clear change": "无明显变化"},
    measure=("指标", "数值"),
    setting=("设置", "数值"),
    curve=("步", "训练损失", "验证损失"),
    measures=measures_explained.CHINESE,
    stage_measures=measures_explained.OF_STAGES,
    explained=("指标", "含义"),
    compared="指标",
    stages=("步骤", "秒", "内存峰值"),
    leakage="{rows} 条测试问题中有 {leaked} 条（{share:.1f} %）也在 {training_rows:,} "
    "条训练数据里。",
    leakage_unknown="找不到训练数据（training.train_data），因此不知道有多少测试问题也在其中。",
    legend="括号内为 95 % 区间。与第一个模型相比：▲ 更好，▼ 更差，≈ 无明显变化。"
    "↑ 越大越好，↓ 越小越好，→ 越接近 1 越好；– 无法比较。",
    extracted="数据行没有指定模式时，完全匹配只比较 `{extract}` 模式找到的部分。",
    took="运行命令：`{command}`。",
    rows="{rows} 条测试数据，每个回答最多 {max_new_tokens} 个词元，贪心解码。第一个模型是基线。",
    signatures="BLEU `{bleu}`；chrF `{chrf}`。",
    prompt="问题",
    reference="参考答案",
    no_gguf="没有对比 GGUF 文件。",
    loss="**{label}** 相对 **{source}**：完全匹配 {exact:+.1f} 个百分点，困惑度 × "
    "{perplexity:.3f}，文件为其 {share:.0f} %。",
    unpaired="**{label}** 没有与转换前的模型一起对比，因此损失未知。",
    no_warnings="无。",
    no_commands="还没有任何步骤留下记录（`run.json`）。",
    machine="机器：{machine}。版本：{versions}。源码：{commit}。",
)

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
