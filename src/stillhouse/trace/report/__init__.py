"""The evidence as a page and in words."""
