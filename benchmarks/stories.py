"""The small model that writes stories, and the stories kept aside to measure what is made of it."""

import re

from measuring import SHARED_DATA

MODEL = SHARED_DATA / "stories260K"
TEXT = SHARED_DATA / "text" / "tinystories.txt"
WINDOW, CALIBRATION = 256, 256


def held_out() -> list[list[int]]:
    """Windows of the last 30 % of the stories, a BOS where a story starts and nowhere else."""
    from slimtune.models import tokenizers

    stories: list[str] = []
    for paragraph in TEXT.read_text(encoding="utf-8").split("\n\n"):
        starts = re.match(r"Once upon a time|One day, a |Once there was|There was once", paragraph)
        if starts or not stories:
            stories.append(paragraph)
        else:
            stories[-1] += "\n\n" + paragraph
    tokenizer = tokenizers.load_tokenizer(MODEL)
    ids: list[int] = []
    for story in stories[int(len(stories) * 0.7) :]:
        ids += [tokenizer.bos_token_id]
        ids += tokenizer(story, add_special_tokens=False, verbose=False).input_ids
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
