"""Exchangeable resamples: tests whether the suspect prefers delivered outputs to fresh resamples (L2).

For each delivered output the archived teacher draws K fresh outputs for the same prompt and settings, which
are shown to nobody. If the suspect was not trained on the delivered output, nothing that it learned elsewhere
distinguishes it from the others: style, topic and organic exposure cancel. So the rank of the delivered
output among the K + 1 is uniform, by construction and not by a model of the world.

The test does not show how the outputs reached the suspect: publishing the log or sharing the account leaves
the same trace.
"""
