from .card import model_card as model_card
from .card_head import read_card_head as read_card_head
from .manifest import (
    RECIPE_INPUT as RECIPE_INPUT,
    STAGE_INPUT as STAGE_INPUT,
    Manifest as Manifest,
    recipe_section_hash as recipe_section_hash,
    versions as versions,
)
from .terms import Terms as Terms, all_terms as all_terms
from .terms_document import terms_page as terms_page
from .terms_lookup import find_terms as find_terms
from .terms_verdict import (
    TermsVerdict as TermsVerdict,
    combine_verdicts as combine_verdicts,
    explain_terms as explain_terms,
    judge_terms as judge_terms,
    naming_warning as naming_warning,
    require_all_allowed as require_all_allowed,
    require_allowed as require_allowed,
)
from .verify import RunVerification as RunVerification, verify_run as verify_run
