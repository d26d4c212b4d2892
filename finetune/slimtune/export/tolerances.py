"""How much worse than its model a file of each type may be: beyond that it is wrong, not coarse."""

from typing import Literal

Precision = Literal["float32", "bfloat16"]  # of the reference

# Largest rise of the negative log-likelihood: nats per answer token, or this share of it where it
# is above one nat. Small models lose most: one of 260K parameters at 1.54 nats rises by 0.00001
# (F32), 0.0001 (F16), 0.0003 (Q8_0), 0.011 (Q5_K_M), 0.028 (Q5_0), 0.027 (Q4_K_M), 0.071 (Q4_1).
# The limits are five times that and more; a wrong order of rows, a lost scale or another model's
# tensor costs several nats.
TOLERANCES = {
    "F32": 0.001,  # the weights as they are: what is left is the order of summation, and the cache
    "F16": 0.005,  # 11 bits: more than a bf16 model has, but activations round too
    "BF16": 0.02,  # 8 bits: exact for a bf16 model, not for one trained in float32
    "Q8_0": 0.02,  # 8 bits and a scale for 32 values
    "Q6_K": 0.05,
    "Q5_K_M": 0.1,  # 5 bits, the sensitive tensors 6
    "Q5_K_S": 0.12,
    "Q5_1": 0.15,
    "Q5_0": 0.15,
    "Q4_K_M": 0.2,  # 4 bits, the sensitive tensors 6
    "Q4_K_S": 0.3,
    "Q4_1": 0.4,  # 4 bits, one scale and offset for 32 values
    "Q4_0": 0.4,  # 4 bits, one scale for 32 values
}
EXACT = ("F32", "F16")  # greedy text must be the same, and each answer must end as the model's
TIE = 0.02  # nats between first and second choice that llama.cpp's f16 cache may swap
REFERENCE_IN_BF16 = 0.02  # on top, where memory holds the reference in bfloat16 only
