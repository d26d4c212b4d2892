"""What a report is made of, without a model: records, measures and rows, some of them hostile."""

from slimtune.report.measure_table import names_of

HOSTILE = "=cmd|'/C calc'!A0 <script>alert(1)</script> ![x](http://evil.example/i.png) | `a` # $b$"


def record(stage: str) -> dict:
    """A stage's run.json, as far as reports read it."""
    return {
        "stage": stage,
        "command": [f"{stage}.py", "--input", "a b.json"],
        "settings": {"lora": {"rank": 8}, "pruning": {"ffn_ratio": 0.25}},
        "metrics": {
            "kept": 1234,
            "steps": 12,
            "bytes": 5_049_856,
            "supervised_share": 0.132,
            "loss": 0.51234,
            "input": HOSTILE,
        },
        "seconds": 12.5,
        "peak_memory_bytes": 600_000_000,
        "machine": "Linux x86_64, 2 cores",
        "versions": {"python": "3.11", "torch": "2.13"},
        "git_commit": "abc123",
    }


def perplexity(score: float) -> dict:
    """A judged perplexity."""
    return {"score": score, "low": score - 1, "high": score + 1, "verdict": "no clear change"}


def model(label: str, exact: float, size: int, **changes) -> dict:
    """A model's measures, every one of quality `exact`."""
    judged = {"score": exact, "low": exact - 3, "high": exact + 3}
    judged |= {"verdict": "better", "verdict_made_from": "better"}
    return {
        "label": label,
        "reference": f"models/{label}",
        "adapter": None,
        "tokenizer": None,
        "trained": None,
        "made_from": "base",
        "original": "base",
        "kind": "model",
        **dict.fromkeys(names_of("quality"), judged),
        "perplexity": perplexity(4.0),
        "health": {"empty": 0.0, "without_eos": 20.0, "repeating": 0.0, "length_ratio": 1.5},
        "cost": {
            "parameters": 2_600_000,
            "bytes_on_disk": size,
            "load_seconds": 0.1,
            "prompt_tokens_per_second": 900.0,
            "generated_tokens_per_second": 100.0,
            "seconds": 30.0,
            "peak_memory_bytes": 6e8,
        },
        **changes,
    }


def metrics_of_three() -> dict:
    """A base, a model made of it that is far better, and its GGUF that is a little worse."""
    quantised = {"kind": "gguf", "tokenizer": "models/tuned", "perplexity": perplexity(4.2)}
    return {
        "settings": {
            "rows": 300,
            "max_new_tokens": 64,
            "decoding": "greedy",
            "extract": "gsm8k",
            "leaked_rows": 3,
            "training_rows": 2000,
            "signatures": {"bleu": "tok:zh", "chrf": "nc:6"},
        },
        "models": [
            model("base", 2.0, 10_000_000),
            model("tuned", 84.0, 10_500_000),
            model("tuned-Q4_K_M", 82.5, 3_000_000, **quantised),
        ],
        "cautions": [{"kind": "without_eos", "label": "base", "first": "base", "share": 20.0}],
        "samples": [sample(HOSTILE)],
        "random_samples": [sample("Is it?")],
    }


def sample(prompt: str, **changes) -> dict:
    """A row that the base answers wrongly and the two others rightly."""
    return {
        "id": "r1",
        "prompt": prompt,
        "reference": "two\nlines",
        "answers": {"base": HOSTILE, "tuned": "ok", "tuned-Q4_K_M": "well"},
        "scores": {"base": 7.0, "tuned": 100.0, "tuned-Q4_K_M": 50.0},
        "right": {"base": 0.0, "tuned": 100.0, "tuned-Q4_K_M": 100.0},
        **changes,
    }
