"""GGUF files with one corrupted field each, and a program that opens them.

    python invalid_gguf.py FILE SEED FIRST LAST

writes the corruptions FIRST to LAST - 1 of FILE to a file next to it, one after the other, opens each with
llama.cpp as the server does, generates two tokens, and prints a line of JSON before and after each.
"""

import asyncio
import json
import random
import struct
import sys
from pathlib import Path

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
EDGES = [2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [0, 1, 2, 3, 5, 7, 31, 127, 255, 4096, *EDGES]
REALS = [0.0, -1.0, 1e-40, 1e30, float("inf"), float("-inf"), float("nan")]


def fields(data):
    """Every number of the header as (name, offset, struct's letter), and the offset of the tensors."""
    numbers, offset = [], 0

    def number(name, code):
        nonlocal offset
        numbers.append((name, offset, code))
        (value,) = struct.unpack_from(f"<{code}", data, offset)
        offset += struct.calcsize(f"<{code}")
        return value

    def string(name):
        nonlocal offset
        length = number(f"{name} length", "Q")
        offset += length
        return data[offset - length : offset].decode()

    def value(name, kind):
        if kind == 8:
            string(name)
        elif kind == 9:
            inner = number(f"{name} item type", "I")
            for _ in range(number(f"{name} count", "Q")):
                value(f"{name} item", inner)
        else:
            number(name, SCALARS[kind])

    number("magic", "I")
    number("version", "I")
    tensors, keys = number("tensor count", "Q"), number("key count", "Q")
    for _ in range(keys):
        key = string("key")
        value(key, number(f"{key} type", "I"))
    for _ in range(tensors):
        string("tensor name")
        for _ in range(number("dimensions", "I")):
            number("dimension", "Q")
        number("tensor type", "I")
        number("tensor offset", "Q")
    return numbers, offset


def corrupt(data, seed):
    """``data`` with one corrupted field, and its description."""
    chance = random.Random(seed)
    numbers, end = fields(data)
    kind = chance.choice(["number"] * 8 + ["cut", "byte"])
    if kind == "cut":
        length = chance.choice([chance.randrange(end), chance.randrange(end, len(data))])
        return data[:length], f"cut to {length} of {len(data)} bytes"
    corrupted = bytearray(data)
    if kind == "byte":
        offset = chance.randrange(end)
        corrupted[offset] = chance.randrange(256)
        return bytes(corrupted), f"byte {offset} is {corrupted[offset]}"
    name = chance.choice(sorted({name for name, _, _ in numbers}))
    _, offset, code = chance.choice([field for field in numbers if field[0] == name])
    (true,) = struct.unpack_from(f"<{code}", data, offset)
    if code in "fd":
        value = chance.choice([*REALS, -true, 1000 * true])
    else:
        value = chance.choice([*NUMBERS, true + 1, true - 1, 2 * true, true // 2])
        bits = 8 * struct.calcsize(code)
        value %= 2**bits
        if code.islower() and value >= 2 ** (bits - 1):
            value -= 2**bits
    struct.pack_into(f"<{code}", corrupted, offset, value)
    return bytes(corrupted), f"{name} is {value}, not {true}"


def try_to_open(path):
    """The outcome of opening the file: an error of ours, or a token."""
    from stillhouse.errors import StillhouseError
    from stillhouse.models import Request, Sampling
    from stillhouse.models.backends.llama_cpp import open_llama_cpp

    try:
        model = open_llama_cpp(str(path), seed=0)
    except StillhouseError as error:
        return f"refused: {error}"
    request = Request("0", [{"role": "user", "content": "Hi"}], Sampling(max_tokens=2))

    async def answer():
        (reply,) = await model.generate([request])
        await model.close()
        return reply

    reply = asyncio.run(answer())
    return f"refused: {reply}" if isinstance(reply, StillhouseError) else "answered"


def main(file, seed, first, last):
    data = Path(file).read_bytes()
    path = Path(file).with_suffix(".corrupt.gguf")
    for number in range(int(first), int(last)):
        corrupted, description = corrupt(data, f"{seed}:{number}")
        path.write_bytes(corrupted)
        print(json.dumps([number, description]), flush=True)
        print(json.dumps([number, try_to_open(path)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
