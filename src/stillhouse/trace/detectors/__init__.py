"""The tests of a trace, one file each."""
