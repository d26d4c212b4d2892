"""The report's words in each language. The templates hold what is the same in every report."""

from dataclasses import dataclass


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
    quality: tuple[str, ...]
    health: tuple[str, ...]
    footprint: tuple[str, ...]
    stages: tuple[str, ...]
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
    quality=(
        "model",
        "exact match % ↑",
        "95 % interval",
        "against the first",
        "ROUGE-1 ↑",
        "ROUGE-2 ↑",
        "ROUGE-L ↑",
        "BLEU ↑",
        "chrF ↑",
        "perplexity ↓",
        "bits per byte ↓",
    ),
    health=("model", "empty %", "without EOS %", "looping %"),
    footprint=(
        "model",
        "parameters",
        "on disk",
        "load s",
        "reading tokens/s",
        "writing tokens/s",
        "peak memory",
    ),
    stages=("stage", "seconds", "peak memory"),
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
    quality=(
        "模型",
        "完全匹配 % ↑",
        "95 % 区间",
        "与第一个相比",
        "ROUGE-1 ↑",
        "ROUGE-2 ↑",
        "ROUGE-L ↑",
        "BLEU ↑",
        "chrF ↑",
        "困惑度 ↓",
        "每字节比特 ↓",
    ),
    health=("模型", "空回答 %", "无 EOS %", "循环重复 %"),
    footprint=("模型", "参数量", "磁盘占用", "加载秒数", "读入词元/秒", "生成词元/秒", "内存峰值"),
    stages=("步骤", "秒", "内存峰值"),
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
