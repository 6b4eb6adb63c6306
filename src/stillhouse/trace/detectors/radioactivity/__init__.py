"""Radioactivity: does the suspect prefer the tokens that the teacher's watermark preferred?

A model that learned from marked text goes on in its manner: after a window that it met in training, it tends
to what the key made likely there (Sander et al. 2024, arXiv:2402.14904). Two ways to look:

- closed: the suspect writes answers, and their tokens are scored. Text is all that is needed; it is cut with
  the teacher's tokenizer, whatever the suspect's is. Windows that occur in the prompt are left out.
- open: the teacher's delivered texts pass through the suspect, and its likeliest next token after each window
  is scored. That needs its weights and the teacher's tokenizer, and sees far more (section 4 there). Windows
  that came before in the same context are left out: there the suspect can copy what followed, mark and all,
  without ever having learned it.

Each pair of window and token counts once over the whole transcript. Neither who observes nor the
transcript knows the key; :func:`judge` cuts the pairs from the raw token ids, so whoever is given the key can
count again, with another window too.

A public key (everybody's outputs carry it) shows exposure by any route, L1; a key that marked one account's
outputs only shows those outputs, L2. What neither shows is intent.

Shapes: N pairs, T tokens of a text, B texts of a batch, V vocabulary.
"""
