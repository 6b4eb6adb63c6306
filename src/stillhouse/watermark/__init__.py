"""Watermarks in sampled text: embedding and detection, shared by serve and trace.

A sampler applies a :class:`Mark` (:func:`stillhouse.models.sampling.batch.sample`,
:class:`stillhouse.models.sampling.continuous.LiveSequence`); :func:`detect` finds it in token ids. Text that
llama.cpp or an API generates is not marked, and a mark does not survive a paraphrase.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
