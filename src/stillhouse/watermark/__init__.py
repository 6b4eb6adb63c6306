"""Marks in sampled text: embedding and detection, shared by serve and trace."""
