"""Radioactivity: tests whether the suspect prefers the tokens that the teacher's watermark preferred.

A model trained on watermarked text imitates it: after a window that it met in training, it tends to the
tokens that the key made likely there (Sander et al. 2024, arXiv:2402.14904). There are two modes:

- closed: the suspect writes answers, and their tokens are scored. This needs only text, which is encoded with
  the teacher's tokenizer, whatever the suspect's is. Windows that occur in the prompt are left out.
- open: the suspect reads the teacher's delivered texts, and its likeliest next token after each window is
  scored. This needs the suspect's weights, which must have the teacher's tokenizer, and has far more power
  (section 4 there). Windows that occurred before in the same context are left out: there the suspect can copy
  what followed, watermark included, without having been trained on it.

Each pair of window and token counts once over the whole transcript. Neither the observer nor the transcript
knows the key: the judge forms the pairs from the raw token ids, so anyone with the key can recompute the
result, also with another window.

A key that marks the outputs to all accounts shows exposure by any route (L1). A key that marked only one
account's outputs shows training on those outputs (L2). Neither shows intent.
"""
