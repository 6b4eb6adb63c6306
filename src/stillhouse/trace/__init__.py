"""Whose words trained it: tests with an error rate, their combination, and the evidence another party can rerun."""
