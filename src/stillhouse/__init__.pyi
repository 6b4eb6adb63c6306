from .corpus.conversations import collect as collect
from .distill.data.documents import Document as Document
from .distill.data.tokenize import tokenize as tokenize
from .distill.loss.logits_divergence import divergence as divergence
from .distill.students.save import save as save
from .distill.targets.teacher_signal import cache_targets as cache_targets
from .distill.training.loop import train as train
from .errors import StillhouseError as StillhouseError
from .evaluate.evaluate_model import evaluate as evaluate
from .export.write import export as export
from .models.load import load as load
from .models.weights import Weights as Weights
from .recipe.sections import Objective as Objective, Train as Train
from .serve.background import serve as serve
from .trace.trace_model import trace as trace

__version__: str
