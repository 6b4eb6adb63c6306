from .evalues import (
    STAKES as STAKES,
    e_from_p as e_from_p,
    log_betting_process as log_betting_process,
    p_from_e as p_from_e,
    rounds_until as rounds_until,
    weighted_mean as weighted_mean,
)
from .intervals import (
    Estimate as Estimate,
    clipped as clipped,
    clopper_pearson as clopper_pearson,
    exponential as exponential,
    interval as interval,
    paired_difference as paired_difference,
    student_t as student_t,
)
from .pass_rates import (
    Mean as Mean,
    majority as majority,
    mean_over_prompts as mean_over_prompts,
    pass_at_k as pass_at_k,
)
from .permutations import (
    fisher_log_p as fisher_log_p,
    fixed_points_log_p as fixed_points_log_p,
    heads_log_p as heads_log_p,
    p_from_log as p_from_log,
)
from .power import (
    detectable_effect as detectable_effect,
    log_size as log_size,
    power_of_e as power_of_e,
    power_of_p as power_of_p,
    predicted_z as predicted_z,
)
from .ranks import (
    RankTest as RankTest,
    delivered_win_rates as delivered_win_rates,
    label_permutation_p as label_permutation_p,
    log_rank_e_process as log_rank_e_process,
    mid_ranks as mid_ranks,
    rank_odds as rank_odds,
    rank_payoffs as rank_payoffs,
    rank_test as rank_test,
    resample_counts as resample_counts,
    signed_wins as signed_wins,
    usable_items as usable_items,
)
from .tails import (
    SMALLEST as SMALLEST,
    binomial_log_e as binomial_log_e,
    binomial_upper as binomial_upper,
    e_from_log as e_from_log,
    gamma_log_e as gamma_log_e,
    gamma_upper as gamma_upper,
    student_t_upper as student_t_upper,
)
