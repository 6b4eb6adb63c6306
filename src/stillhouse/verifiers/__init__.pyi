from .opened import Verifiers as Verifiers, check_verifiers as check_verifiers, open_verifier as open_verifier
from .types import Answer as Answer, Score as Score
