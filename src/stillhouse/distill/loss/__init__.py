"""Losses over logits and hidden states; the divergences themselves are in stillhouse/divergences.py."""
