"""Marks in sampled text: embedding and detection, shared by serve and trace.

The front door. A :class:`Mark` is given to a sampler (:func:`stillhouse.models.sampler.sample`,
:class:`stillhouse.models.continuous.LiveSequence`); :func:`detect` finds it in token ids. What llama.cpp or
an API generates is not marked, and a mark does not survive a paraphrase.
"""

from stillhouse.watermark.detection import (
    Detection,
    Pairs,
    detect,
    distinct_pairs,
    evidence_as_it_grew,
    interval,
    text_pairs,
    weigh,
)
from stillhouse.watermark.keys import account_key, key_fingerprint, new_key, parse_key, read_key, write_key
from stillhouse.watermark.marks import Mark, Scheme

__all__ = [
    "Detection",
    "Mark",
    "Pairs",
    "Scheme",
    "account_key",
    "detect",
    "distinct_pairs",
    "evidence_as_it_grew",
    "interval",
    "key_fingerprint",
    "new_key",
    "parse_key",
    "read_key",
    "text_pairs",
    "weigh",
    "write_key",
]
