from .detection import (
    Detection as Detection,
    Pairs as Pairs,
    detect as detect,
    distinct_pairs as distinct_pairs,
    evidence_as_it_grew as evidence_as_it_grew,
    interval as interval,
    text_pairs as text_pairs,
    weigh as weigh,
)
from .keys import (
    account_key as account_key,
    key_fingerprint as key_fingerprint,
    new_key as new_key,
    parse_key as parse_key,
    read_key as read_key,
    write_key as write_key,
)
from .marks import Mark as Mark, Scheme as Scheme
