from .data.batch_schedule import Step as Step
from .data.documents import (
    Document as Document,
    documents_hash as documents_hash,
    make_documents as make_documents,
)
from .data.token_alignment import (
    AlignedDocuments as AlignedDocuments,
    ChatTokenizer as ChatTokenizer,
    align_documents as align_documents,
)
from .data.tokenize import tokenize as tokenize
from .forward.forward_pass import ForwardPass as ForwardPass
from .forward.precision import compute_dtype as compute_dtype
from .loss.lm_head import LMHead as LMHead, lm_head_of as lm_head_of
from .loss.logits_divergence import divergence as divergence
from .loss.shared_vocabulary import (
    SharedVocabulary as SharedVocabulary,
    join_vocabularies as join_vocabularies,
)
from .loss.teacher_rows import TeacherRows as TeacherRows
from .on_policy.config import OnPolicyConfig as OnPolicyConfig
from .on_policy.learner import OffPolicyData as OffPolicyData
from .on_policy.loop import train_on_policy as train_on_policy
from .on_policy.rollouts import (
    RewardFunction as RewardFunction,
    TeacherPrompt as TeacherPrompt,
    TokenizedPrompt as TokenizedPrompt,
)
from .students.build import (
    BuiltStudent as BuiltStudent,
    build_student as build_student,
    require_same_tokenizer as require_same_tokenizer,
)
from .students.decoder import layers_of as layers_of
from .students.lora import merged as merged, prepare_lora as prepare_lora
from .students.save import save as save, save_student as save_student
from .students.scratch import scratch_settings as scratch_settings
from .targets.context_distillation import (
    PrivateContextSignal as PrivateContextSignal,
    make_teacher_documents as make_teacher_documents,
)
from .targets.ensemble import EnsembleMember as EnsembleMember, EnsembleSignal as EnsembleSignal
from .targets.span_targets import SpanSignal as SpanSignal
from .targets.teacher_signal import (
    TeacherSignal as TeacherSignal,
    cache_targets as cache_targets,
    open_targets as open_targets,
)
from .training.environment import choose_device as choose_device
from .training.learner import Learner as Learner
from .training.loop import TrainResult as TrainResult, train as train
