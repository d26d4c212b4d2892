"""The name, direction and one-line meaning of every measure, in each language of the reports.

The report's words in each language. The templates hold what is the same in every report.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Measure(NamedTuple):
    """`arrow`: ↑ more is better, ↓ less is better, → nearer to 1 is better, "" neither."""

    name: str
    arrow: str
    meaning: str

    @property
    def title(self) -> str:
        return f"{self.name} {self.arrow}".strip()


MEASURES_ENGLISH = {
    "exact_match": Measure(
        "exact match %",
        "↑",
        "answers equal to a reference; width, case, punctuation and spacing aside",
    ),
    "rouge_1": Measure(
        "ROUGE-1", "↑", "words shared with the reference; a Chinese character is a word"
    ),
    "rouge_2": Measure("ROUGE-2", "↑", "pairs of neighbouring words shared with the reference"),
    "rouge_l": Measure(
        "ROUGE-L", "↑", "longest sequence of words in the order of the reference, gaps allowed"
    ),
    "bleu": Measure("BLEU", "↑", "runs of one to four words shared, over all rows together"),
    "chrf": Measure("chrF", "↑", "runs of one to six characters shared, over all rows together"),
    "token_accuracy": Measure(
        "token accuracy %", "↑", "tokens of the reference answers that are the model's first choice"
    ),
    "perplexity": Measure(
        "perplexity",
        "↓",
        "surprise at the reference answers, per token; 1 is none. Only within one tokenizer",
    ),
    "bits_per_byte": Measure(
        "bits per byte", "↓", "the same surprise per byte of text: compares across tokenizers"
    ),
    "empty": Measure("empty %", "↓", "answers without a word"),
    "without_eos": Measure(
        "without EOS %", "↓", "answers that ran into the token limit instead of ending"
    ),
    "repeating": Measure("looping %", "↓", "answers that end in one phrase over and over"),
    "length_ratio": Measure(
        "length ratio", "→", "words of all answers by words of all references; 1 is as long"
    ),
    "parameters": Measure("parameters", "", "numbers the model consists of, an adapter's included"),
    "bytes_on_disk": Measure("on disk", "↓", "size of the weight files"),
    "load_seconds": Measure("load s", "↓", "seconds from the start to the first question"),
    "prompt_tokens_per_second": Measure(
        "reading tokens/s", "↑", "prompt tokens a second, one sequence"
    ),
    "generated_tokens_per_second": Measure(
        "writing tokens/s", "↑", "answer tokens a second, one sequence"
    ),
    "peak_memory_bytes": Measure(
        "peak memory", "↓", "most memory the model's own process held at once"
    ),
}

MEASURES_CHINESE = {
    "exact_match": Measure(
        "完全匹配 %", "↑", "与某个参考答案相同的回答；不计全角半角、大小写、标点和空格"
    ),
    "rouge_1": Measure("ROUGE-1 词重合", "↑", "与参考答案共有的词；一个汉字算一个词"),
    "rouge_2": Measure("ROUGE-2 词对重合", "↑", "与参考答案共有的相邻词对"),
    "rouge_l": Measure("ROUGE-L 最长序列", "↑", "与参考答案顺序一致的最长词序列，中间可有间隔"),
    "bleu": Measure("BLEU 词组重合", "↑", "全部数据上一到四个词的连续片段的重合"),
    "chrf": Measure("chrF 字符重合", "↑", "全部数据上一到六个字符的连续片段的重合"),
    "token_accuracy": Measure("词元准确率 %", "↑", "参考答案的词元中，恰为模型首选的比例"),
    "perplexity": Measure(
        "困惑度", "↓", "模型对参考答案的意外程度（按词元），1 为毫不意外；只在同一分词器内可比"
    ),
    "bits_per_byte": Measure("每字节比特", "↓", "同样的意外程度，按文本字节计：不同分词器之间可比"),
    "empty": Measure("空回答 %", "↓", "一个词也没有的回答"),
    "without_eos": Measure("无 EOS %", "↓", "没有自己结束、一直写到上限的回答"),
    "repeating": Measure("循环重复 %", "↓", "以同一句话反复结尾的回答"),
    "length_ratio": Measure("长度比", "→", "全部回答的词数除以全部参考答案的词数；1 为一样长"),
    "parameters": Measure("参数量", "", "模型包含的数字个数，含适配器"),
    "bytes_on_disk": Measure("磁盘占用", "↓", "权重文件的大小"),
    "load_seconds": Measure("加载秒数", "↓", "从启动到可以提问的秒数"),
    "prompt_tokens_per_second": Measure("读入词元/秒", "↑", "每秒读入的提示词元，单个序列"),
    "generated_tokens_per_second": Measure("生成词元/秒", "↑", "每秒生成的词元，单个序列"),
    "peak_memory_bytes": Measure("内存峰值", "↓", "模型所在进程同时占用的最大内存"),
}

# What other stages note in their run.json, which is in English; a name that is missing stays so.
OF_STAGES = {
    "input": "输入",
    "format": "格式",
    "rows in": "读入行数",
    "kept": "保留",
    "rejected": "剔除",
    "duplicates": "重复",
    "near duplicates": "近似重复",
    "leaks": "泄漏",
    "too long": "过长",
    "splits.train": "训练集行数",
    "splits.validation": "验证集行数",
    "splits.test": "测试集行数",
    "languages.en": "英文行数",
    "languages.zh": "中文行数",
    "languages.mixed": "中英混合行数",
    "long rows.whole": "完整放入的行数",
    "tokens.p50": "词元数中位数",
    "tokens.p90": "词元数 90 % 分位",
    "tokens.p99": "词元数 99 % 分位",
    "tokens.max": "词元数最大值",
    "tokens.total": "词元总数",
    "tokens.supervised share": "受监督词元比例",
    "tokens.truncated share": "被截断的比例",
    "tokens.padding saved": "省去的填充比例",
    "tokens.batch size": "批大小",
    "trainable parameters": "可训练参数",
    "parameters": "参数量",
    "parameters before": "剪枝前参数量",
    "parameters after": "剪枝后参数量",
    "training rows": "训练行数",
    "validation rows": "验证行数",
    "text passages": "纯文本段数",
    "tokens per epoch": "每轮词元数",
    "supervised share": "受监督词元比例",
    "steps": "步数",
    "train loss first": "最初训练损失",
    "train loss last": "最后训练损失",
    "validation loss first": "最初验证损失",
    "validation loss best": "最低验证损失",
    "validation loss last": "最后验证损失",
    "tokens per second": "词元/秒",
    "training seconds": "训练秒数",
    "tensors": "张量数",
    "changed": "改变的张量数",
    "bytes": "字节数",
    "quantization": "量化类型",
}


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
    measures=MEASURES_ENGLISH,
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
    measures=MEASURES_CHINESE,
    stage_measures=OF_STAGES,
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
