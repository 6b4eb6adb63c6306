from .data.cross_tokenizer import Aligned as Aligned, Reader as Reader, align_documents as align_documents
from .data.documents import (
    Document as Document,
    documents_hash as documents_hash,
    make_documents as make_documents,
)
from .forward.forward_pass import ForwardPass as ForwardPass
from .forward.precision import compute_dtype as compute_dtype
from .loss.divergences import divergence as divergence, needs_teacher as needs_teacher
from .loss.lm_head import Head as Head, head_of as head_of
from .loss.shared_vocabulary import (
    SharedVocabulary as SharedVocabulary,
    join_vocabularies as join_vocabularies,
)
from .loss.teacher_rows import SignalRows as SignalRows
from .on_policy.loop import OffPolicyData as OffPolicyData, train_on_policy as train_on_policy
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
from .students.lora import prepare_lora as prepare_lora
from .students.save import save_student as save_student
from .targets.cross_tokenizer import SpanSignal as SpanSignal
from .targets.ensemble import Member as Member, SeveralTeachers as SeveralTeachers
from .targets.private_context import (
    AlignedSignal as AlignedSignal,
    make_teacher_documents as make_teacher_documents,
)
from .targets.signal import (
    TeacherSignal as TeacherSignal,
    cache_targets as cache_targets,
    open_targets as open_targets,
)
from .training.loop import TrainResult as TrainResult, train as train
from .training.runtime import choose_device as choose_device
