"""Delivered outputs against fresh resamples of the teacher."""
