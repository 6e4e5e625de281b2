"""Settings and the files they live in: the schemas that users write, and how plain files are read and written.

    schema       recipes, cards, and what they are made of; unknown keys are refused by name
    reading      text, YAML and JSON of others, refused by one message
    writing      files and folders of ours, whole or not at all
    hashed       JSON records that carry a hash of their own
    overrides    key=value
"""

from latentlm.config.overrides import apply_overrides
from latentlm.config.reading import as_yaml, read_json, read_text, read_yaml, yaml_data
from latentlm.config.schema import (
    SOCKETS,
    BackboneConfig,
    Card,
    DataConfig,
    GranularitySpec,
    LatentConfig,
    ModelConfig,
    PartSpec,
    Recipe,
    RopeScaling,
    Socket,
    WeightsSpec,
    parse,
)
from latentlm.config.strict import Strict
from latentlm.config.training import EvaluateConfig, ProfileConfig, TrainConfig

__all__ = [
    "SOCKETS",
    "BackboneConfig",
    "Card",
    "DataConfig",
    "EvaluateConfig",
    "GranularitySpec",
    "LatentConfig",
    "ModelConfig",
    "PartSpec",
    "ProfileConfig",
    "Recipe",
    "RopeScaling",
    "Socket",
    "Strict",
    "TrainConfig",
    "WeightsSpec",
    "apply_overrides",
    "as_yaml",
    "parse",
    "read_json",
    "read_text",
    "read_yaml",
    "yaml_data",
]
