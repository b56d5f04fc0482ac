"""What a training run is, as one typed configuration. Knows no torch: importing it is cheap everywhere.

Everything that is configured is imported from here.
"""

from student.config.losses import LossConfig
from student.config.models import (
    MLP,
    AnyModel,
    ShallowMimic,
    SmallCNN,
    SmallLM,
    TorchModule,
    Transformers,
)
from student.config.reading import ReadingConfig, StoreLocation, VocabularyConfig
from student.config.training import FREE_ON_RESUME, OWN, TrainConfig

__all__ = [
    "FREE_ON_RESUME",
    "MLP",
    "OWN",
    "AnyModel",
    "LossConfig",
    "ReadingConfig",
    "ShallowMimic",
    "SmallCNN",
    "SmallLM",
    "StoreLocation",
    "TorchModule",
    "TrainConfig",
    "Transformers",
    "VocabularyConfig",
]
