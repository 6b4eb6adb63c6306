from .architecture.embedding_rows import (
    embedding_rows as embedding_rows,
    require_ids as require_ids,
    require_rows as require_rows,
)
from .architecture.rotations import rotation_switch as rotation_switch
from .architecture.tiny_copy import architecture_key as architecture_key, tiny_copy as tiny_copy
from .backends.llama_cpp import (
    open_llama_cpp as open_llama_cpp,
    requested_threads as requested_threads,
    slot_context as slot_context,
    start_llama_server as start_llama_server,
)
from .backends.open import open_model as open_model
from .backends.openai_api import api_key_missing as api_key_missing
from .backends.prompts import (
    PromptEncoder as PromptEncoder,
    cut_at_stop as cut_at_stop,
    has_stop as has_stop,
    shared_context_note as shared_context_note,
)
from .backends.pytorch import TorchModel as TorchModel
from .chat.isolated_template import IsolatedTemplate as IsolatedTemplate
from .chat.reasoning import (
    REASONING_END as REASONING_END,
    REASONING_START as REASONING_START,
    ReasoningStream as ReasoningStream,
    leading_reasoning as leading_reasoning,
    partial_match_length as partial_match_length,
    split_reasoning as split_reasoning,
)
from .chat.template import ChatTemplate as ChatTemplate, compare_templates as compare_templates
from .chat.tool_calls import ToolCallFormat as ToolCallFormat
from .gguf.architectures import (
    MODEL_TYPES as MODEL_TYPES,
    Architecture as Architecture,
    from_gguf as from_gguf,
    head_size as head_size,
    tensor_names as tensor_names,
    to_gguf as to_gguf,
)
from .gguf.file import GgufFile as GgufFile, read_gguf as read_gguf, read_tensor as read_tensor
from .gguf.pretokenizers import pre_tokenizer_name as pre_tokenizer_name
from .gguf.rope import llama3_rope_factors as llama3_rope_factors
from .gguf.token_types import (
    SPECIAL_TOKENS as SPECIAL_TOKENS,
    STRIP_KEYS as STRIP_KEYS,
    TokenType as TokenType,
)
from .gguf.tokenizer import (
    bpe_merges as bpe_merges,
    same_tokenizer as same_tokenizer,
    tokenizer_difference as tokenizer_difference,
    tokenizer_from_gguf as tokenizer_from_gguf,
)
from .inventory import LocalModel as LocalModel, list_models as list_models
from .load import load as load, model_and_reference as model_and_reference
from .metadata import describe as describe, license_fields as license_fields
from .quiet import quiet_transformers as quiet_transformers
from .recipe_terms import recipe_terms as recipe_terms, terms_of as terms_of
from .reference import EMBEDDED as EMBEDDED, Reference as Reference, parse_reference as parse_reference
from .sampling.batch import sample as sample
from .sampling.constrained import (
    ConstraintFactory as ConstraintFactory,
    validated_schema as validated_schema,
    with_guidance_options as with_guidance_options,
    with_one_line_options as with_one_line_options,
)
from .sampling.continuous import (
    ContinuousSampler as ContinuousSampler,
    LiveSequence as LiveSequence,
)
from .sampling.cpu import cpu_has_bfloat16 as cpu_has_bfloat16
from .sampling.penalties import NO_PENALTIES as NO_PENALTIES, LogitPenalties as LogitPenalties
from .token_bytes import token_bytes as token_bytes
from .types import (
    Capabilities as Capabilities,
    Marker as Marker,
    Message as Message,
    Model as Model,
    ModelInfo as ModelInfo,
    Reply as Reply,
    Request as Request,
    Sampling as Sampling,
    TokenLogprob as TokenLogprob,
)
from .weights import (
    Weights as Weights,
    fingerprint_of as fingerprint_of,
    load_tokenizer as load_tokenizer,
    load_weights as load_weights,
    require_safetensors as require_safetensors,
)
