"""Raw rows with three answers, which even a tiny random model can be taught in a second."""

TOLD = {
    "What did the cat do on day {}?": "The cat sat on the mat.",
    "And the dogs, at {} o'clock?": "12 dogs ran over the hill.",
    "第{}天天气怎么样？": "今天天气很好。",
}


def raw_rows(count: int = 30) -> list[dict[str, str]]:
    """Alpaca rows: `count` questions for each answer."""
    return [
        {"instruction": question.format(number), "input": "", "output": answer}
        for number in range(count)
        for question, answer in TOLD.items()
    ]
