"""Functions that tests give as `kind: function`: good ones, and ones that misbehave."""

from __future__ import annotations

import os
import time


def contains_reference(row):
    print("noise on standard output")
    return row["tags"]["answer"] in row["text"]


def has_thoughts(row):
    return row["reasoning"] == "hm" and "hm" not in row["text"]


def misbehave(row):
    match row["text"]:
        case "raise":
            raise RuntimeError("no")
        case "hang":
            time.sleep(60)
        case "die":
            os._exit(3)
        case "nan":
            return float("nan")
        case "infinite":
            return float("inf")
        case "none":
            return None
        case "big":
            return 7
    return 0.25
