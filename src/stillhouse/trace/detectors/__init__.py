"""The detectors of a trace, one file or package each; see :mod:`stillhouse.trace.detectors.base`."""
