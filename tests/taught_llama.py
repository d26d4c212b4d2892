"""A Llama that has learned a page by heart, in a second: sure of what it says, as trained ones are.

Of random weights two tokens are often almost equally likely, and a last digit decides. This one has
the odd sizes of a small real model: 8 heads of 8 in 4 groups, rows of 172, tied embeddings.
"""

from pathlib import Path

import torch
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM

from slimtune.models import tokenizers

STEPS, RATE = 65, 1e-2
PAGE = """\
Once upon a time there was a small house on a hill. A cat, 3 dogs and a grey horse lived in it.
Every morning the horse said: "Who will go down to the river today?" And the cat, who was afraid of
water, said nothing at all. So the dogs went, one after another, and came home wet at 7 o'clock.
从前有一座小房子，里面住着一只猫、三只狗和一匹马。每天早上，马都问：“今天谁去河边？”猫怕水，什么也不说。
One day it rained for so long that the river came up to the house. "Now," said the horse, "you need
not go down any more." The cat sat on the roof until the sun came out, and learned to count to 12.
"""
SHAPE = {
    "hidden": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
}


def write_taught_llama(folder: Path) -> Path:
    """A folder like that of a real model, in bf16; it says the page to whoever begins it."""
    write_tiny_llama(folder, **SHAPE)
    tokenizer = tokenizers.load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    page = torch.tensor([tokenizer(PAGE).input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        model(input_ids=page, labels=page).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
