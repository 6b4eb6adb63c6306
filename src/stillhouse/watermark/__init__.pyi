from .detection import (
    Detection as Detection,
    Pairs as Pairs,
    detect as detect,
    detection_from_scores as detection_from_scores,
    distinct_pairs as distinct_pairs,
    interval as interval,
    running_log_e as running_log_e,
    text_pairs as text_pairs,
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
