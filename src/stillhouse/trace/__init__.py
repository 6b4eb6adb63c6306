"""Whose words trained it: tests with an error rate, how they combine, evidence that others can rerun."""
