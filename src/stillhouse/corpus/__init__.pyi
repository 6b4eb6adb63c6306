from .collect.failures import describe_failures as describe_failures
from .collect.loop import CollectSummary as CollectSummary, collect_answers as collect_answers
from .curate.filter import FilterSummary as FilterSummary, filter_corpus as filter_corpus
from .curate.rejection_sampling import (
    SelectSummary as SelectSummary,
    read_pass_rates as read_pass_rates,
    select_corpus as select_corpus,
)
from .curate.unrendered import reject_unrendered as reject_unrendered
from .messages import assistant_message as assistant_message, reply_message as reply_message
from .prompts.context import Context as Context, load_context as load_context
from .prompts.load import (
    PromptSet as PromptSet,
    load_prompts as load_prompts,
    read_prompts as read_prompts,
    read_recipe_prompts as read_recipe_prompts,
)
from .prompts.prompt import Prompt as Prompt, RejectedRecord as RejectedRecord
from .prompts.split import split_held_out as split_held_out
from .schema import REJECT_SCHEMA as REJECT_SCHEMA, SCHEMA as SCHEMA
from .store.corpus import Corpus as Corpus
