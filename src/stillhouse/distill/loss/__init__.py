"""Divergences and the fused losses that use them."""
