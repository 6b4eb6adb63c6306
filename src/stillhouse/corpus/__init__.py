"""What was said: prompts, the schema, the store on disk, collecting, and filters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
