"""GGUF files that lie in one place each, and a program that opens them.

    python invalid_gguf.py FILE SEED FIRST LAST

writes lies FIRST to LAST - 1 of FILE to a file beside it, one after the other, opens each with llama.cpp as
the server does, lets it say two tokens, and prints a line of JSON before and after each.
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
    """Every number of the header as (what it is, place, struct's letter); also where the tensors begin."""
    found, at = [], 0

    def number(what, code):
        nonlocal at
        found.append((what, at, code))
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return value

    def string(what):
        nonlocal at
        length = number(f"{what} length", "Q")
        at += length
        return data[at - length : at].decode()

    def value(what, kind):
        if kind == 8:
            string(what)
        elif kind == 9:
            inner = number(f"{what} item type", "I")
            for _ in range(number(f"{what} count", "Q")):
                value(f"{what} item", inner)
        else:
            number(what, SCALARS[kind])

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
    return found, at


def lie(data, seed):
    """``data`` with one lie, and what it is."""
    chance = random.Random(seed)
    found, end = fields(data)
    kind = chance.choice(["number"] * 8 + ["cut", "byte"])
    if kind == "cut":
        length = chance.choice([chance.randrange(end), chance.randrange(end, len(data))])
        return data[:length], f"cut to {length} of {len(data)} bytes"
    lied = bytearray(data)
    if kind == "byte":
        place = chance.randrange(end)
        lied[place] = chance.randrange(256)
        return bytes(lied), f"byte {place} is {lied[place]}"
    what = chance.choice(sorted({what for what, _, _ in found}))
    _, place, code = chance.choice([field for field in found if field[0] == what])
    (true,) = struct.unpack_from(f"<{code}", data, place)
    if code in "fd":
        value = chance.choice([*REALS, -true, 1000 * true])
    else:
        value = chance.choice([*NUMBERS, true + 1, true - 1, 2 * true, true // 2])
        bits = 8 * struct.calcsize(code)
        value %= 2**bits
        if code.islower() and value >= 2 ** (bits - 1):
            value -= 2**bits
    struct.pack_into(f"<{code}", lied, place, value)
    return bytes(lied), f"{what} is {value}, not {true}"


def opened(path):
    """What becomes of the file: an error of ours, or a token."""
    from stillhouse.errors import StillhouseError
    from stillhouse.models import Request, Sampling
    from stillhouse.models.backends.llama_cpp import open_llama_cpp

    try:
        model = open_llama_cpp(str(path), seed=0)
    except StillhouseError as error:
        return f"refused: {error}"
    request = Request("0", [{"role": "user", "content": "Hi"}], Sampling(max_tokens=2))

    async def said():
        (reply,) = await model.generate([request])
        await model.close()
        return reply

    reply = asyncio.run(said())
    return f"refused: {reply}" if isinstance(reply, StillhouseError) else "answered"


def main(file, seed, first, last):
    data = Path(file).read_bytes()
    path = Path(file).with_suffix(".lie.gguf")
    for number in range(int(first), int(last)):
        lied, what = lie(data, f"{seed}:{number}")
        path.write_bytes(lied)
        print(json.dumps([number, what]), flush=True)
        print(json.dumps([number, opened(path)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
