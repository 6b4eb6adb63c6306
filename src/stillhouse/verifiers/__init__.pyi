from .scoring import (
    Verifiers as Verifiers,
    check_verifiers as check_verifiers,
    open_verifiers as open_verifiers,
)
from .types import Answer as Answer, Score as Score
