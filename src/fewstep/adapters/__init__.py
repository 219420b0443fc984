"""Other people's models as denoisers. Imported only when asked for; each needs the extra that it names."""

from .edm import EDMModel, load_model, packaged_models

__all__ = ["EDMModel", "load_model", "packaged_models"]
