"""Other people's models as denoisers. Imported only when asked for; each needs the extra that it names."""

from ..models import packaged_models
from .locality import Local, local
from .unet2d import EDMModel, load_model

__all__ = ["EDMModel", "Local", "load_model", "local", "packaged_models"]
