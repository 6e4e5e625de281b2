"""The schemas that users write: model, data and training settings, recipes and cards. Unknown keys are refused by name.

A *recipe* (YAML) is what `latentlm train` reads: model + data + train. A *card* (YAML) is what the zoo lists: a model with its
tokenizer, weights and provenance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from latentlm.config.strict import Strict
from latentlm.config.training import TrainConfig
from latentlm.errors import invalid

Schema = TypeVar("Schema", bound=BaseModel)


# ------------------------------------------------------------------------------------------------------------- model


MOST_BLOCKS = 10_000
"""Ten times as deep as any transformer that was trained; each is objects in memory, weights or not."""
MOST_LATENTS = 256
"""Three times as many as the deepest hierarchies have (Child 2021); each is parts of its own, and asked after all above."""


class RopeScaling(Strict, frozen=True):
    """Llama-3's frequency scaling of rotary positions (Llama 3.1 release, `rope_type: llama3`)."""

    factor: float = Field(8.0, ge=1.0, description="what the frequencies of long wavelengths are divided by")
    low_freq_factor: float = Field(1.0, gt=0, description="wavelengths over original_context / this are long")
    high_freq_factor: float = Field(4.0, gt=0, description="wavelengths under original_context / this stay as they are")
    original_context: int = Field(8192, ge=1, description="context of the model before its extension, in tokens")


class BackboneConfig(Strict):
    """A pre-norm decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention (the structure of Llama 3)."""

    vocabulary: int = Field(257, ge=2, description="symbols; left out, the tokenizer's")
    width: int = Field(128, ge=1, description="D, of the residual stream")
    blocks: int = Field(4, ge=1, le=MOST_BLOCKS, description="L, transformer blocks")
    heads: int = Field(4, ge=1, description="query heads of the attention")
    kv_heads: int | None = Field(None, ge=1, description="key/value heads; default: as many as heads")
    head_dim: int | None = Field(None, ge=2, description="default: width / heads")
    feed_forward: int | None = Field(None, ge=1, description="SwiGLU width; default: 8/3 of the width, up to a multiple of 32")
    context: int = Field(256, ge=1, description="longest sequence, in tokens")
    rope_base: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="Llama 3's scaling of them; default: none")
    tie_embeddings: bool = Field(True, description="the output layer is the embedding, transposed")
    norm_eps: float = Field(1e-5, gt=0, description="added to the mean square in RMSNorm")
    init_std: float = Field(0.02, gt=0, description="standard deviation of weights at initialisation")
    attention: Literal["auto", "sdpa", "xformers", "flex"] = Field(
        "auto", description="backend; auto: the first that serves; flex: no mask is written out, for packed documents on a GPU"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        """Fill the derived sizes and check that they divide."""
        self.kv_heads = self.kv_heads or self.heads
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads}).")
        if self.head_dim is None:
            if self.width % self.heads:
                raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads}), or set head_dim.")
            self.head_dim = self.width // self.heads
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs.")
        if self.feed_forward is None:
            self.feed_forward = -(-8 * self.width // 3 // 32) * 32
        return self


class PartSpec(BaseModel):
    """A part by name, with its settings beside it: `{name: free, rope: false}`. The part's own Config checks the settings.

    Without a name: the part that the decoder takes by default, with these settings changed. `above` names earlier latents that
    the part reads."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    above: list[str] = Field(default_factory=list, description="earlier latents that the part reads")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name and `above`."""
        return dict(self.model_extra or {})

    def over(self, default: PartSpec) -> PartSpec:
        """Itself where it has a name; otherwise the default part with these settings in the place of its own."""
        if self.name is not None:
            return self
        return PartSpec(name=default.name, above=self.above or default.above, **(default.settings | self.settings))

    @model_serializer(mode="wrap")
    def _without_an_empty_above(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Most parts read no other latent: nothing is written of it."""
        data: dict[str, Any] = handler(self)
        if not self.above:
            data.pop("above", None)
        return data


Socket = Annotated[PartSpec | None, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
"""`encoder: free` is short for `encoder: {name: free}`."""
SOCKETS = ("encoder", "prior", "injection", "kl_schedule")
"""The four sockets of a latent, by their keys."""


def _granularity(value: Any) -> Any:
    """A text as it stands, a mapping as a part; both checked for their form. The short form of a chunk is taken apart where
    settings stand beside it, so that one can be changed."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        short = re.fullmatch(r"chunk:([1-9]\d*)", value["name"])
        return {"length": int(short.group(1)), **value, "name": "chunk"} if short else value
    if isinstance(value, str) and not re.fullmatch(r"chunk:[1-9]\d*|(?!chunk$)[A-Za-z]\w*", value):
        raise ValueError(
            f'granularity "{value}" is not one of "token", "chunk:n" (n tokens per latent), "document", or the name of another.'
        )
    return value


GranularitySpec = Annotated[str | PartSpec, BeforeValidator(_granularity)]
"""Where sites begin: "token", "chunk:8", "document", "line", or a mapping `{name: line, ...}` with the part's settings."""


class LatentConfig(Strict):
    """One latent of a decoder: what sits in its four sockets, and where its sites begin."""

    like: str | None = Field(None, description="a decoder whose parts and defaults the open sockets take")
    dims: int = Field(0, ge=0, description="dimensions per site: bits, or real numbers; 0: as `like` has it")
    granularity: GranularitySpec = "token"
    encoder: Socket = Field(None, description="who infers z: a part's name, or {name: ..., setting: ...}")
    prior: Socket = Field(None, description="where z comes from else: a part's name, or {name: ..., setting: ...}")
    injection: Socket = Field(None, description="where z enters: a part's name, or {name: ..., setting: ...}")
    kl_schedule: Socket = Field(None, description="what z costs: a part's name, or {name: ..., setting: ...}")


class ModelConfig(Strict):
    """A decoder: its backbone and its latents. Open sockets take the decoder's defaults.

    The flat form (sockets, event_dims and granularity at the top) means one latent, called `z`; `latents` names any number."""

    decoder: str | PartSpec = Field("vanilla", description="a name, or {name: ..., setting: ...}; see `latentlm parts`")
    backbone: BackboneConfig = BackboneConfig()
    granularity: GranularitySpec = Field(
        "token", description='"token", "chunk:n", "document", "line", "sentence" or a plugin\'s; with settings as a mapping'
    )
    event_dims: int = Field(0, ge=0, description="latent dimensions per site: bits, or real numbers; 0: the decoder's default")
    encoder: Socket = Field(None, description="who infers z: a part's name, or {name: ..., setting: ...}")
    prior: Socket = Field(None, description="where z comes from else: a part's name, or {name: ..., setting: ...}")
    injection: Socket = Field(None, description="where z enters: a part's name, or {name: ..., setting: ...}")
    kl_schedule: Socket = Field(None, description="what z costs: a part's name, or {name: ..., setting: ...}")
    latents: dict[str, LatentConfig] = Field(
        default_factory=dict,
        max_length=MOST_LATENTS,
        description="several latents by name, in order; each like a decoder, or with parts of its own",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        """Either the flat form or `latents`."""
        if not self.latents:
            return self
        if beside := [key for key in ("granularity", "event_dims", *SOCKETS) if key in self.model_fields_set]:
            raise ValueError(f"{', '.join(beside)} stands beside `latents`: move it into the latent that it is meant for.")
        if odd := [name for name in self.latents if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]:
            raise ValueError(f'"{odd[0]}" is no name for a latent: a lower-case letter, then letters, digits or underscores.')
        return self

    @model_serializer(mode="wrap")
    def _without_empty_latents(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of the two forms, the one that is used: a flat configuration is written as ever."""
        data: dict[str, Any] = handler(self)
        for key in ("latents",) if not self.latents else ("granularity", "event_dims", *SOCKETS):
            data.pop(key, None)
        return data

    @property
    def decoder_name(self) -> str:
        """Of the decoder, without settings of its own, which few have; settings without a name are the default one's."""
        return self.decoder if isinstance(self.decoder, str) else self.decoder.name or "vanilla"

    @property
    def by_latent(self) -> dict[str, LatentConfig]:
        """The latents by name, in order, whichever form they are written in; none for a plain decoder."""
        if self.latents:
            return dict(self.latents)
        if self.prior is None and self.injection is None and self.encoder is None:
            return {}
        one: dict[str, Any] = {"dims": self.event_dims, "granularity": self.granularity}
        one |= {key: getattr(self, key) for key in SOCKETS}
        return {"z": LatentConfig.model_construct(None, like=None, **one)}


# ---------------------------------------------------------------------------------------------------- data, training


class DataConfig(Strict):
    """Where the text comes from and how it becomes tokens."""

    path: str = Field(
        "stdlib",
        description='"stdlib" (sources of the running Python), "synthetic:NAME" (texts of known density), a folder, a .txt, '
        ".jsonl or .parquet file, a data set of the Hugging Face hub (owner/name, or hf:name), or a folder of token shards "
        "(`latentlm data prepare`)",
    )
    text_field: str = Field("text", description="column that holds the text in .jsonl, .parquet and data sets")
    pattern: str = Field("*.txt,*.md,*.py", description="files to read in a folder, comma-separated globs")
    split: str = Field("train", description="split of a Hugging Face data set")
    tokenizer: str = Field(
        "bytes", description='"bytes", "bpe:N" (train one of N symbols on the training text), or a tokenizer.json'
    )
    held_out: float = Field(0.05, gt=0, lt=1, description="share of documents kept out of training, whole")
    packing: bool = Field(True, description="several documents in a row, with boundaries; otherwise one document a row")
    seed: int = Field(0, description="order of documents and choice of those held out")
    max_documents: int | None = Field(None, ge=2, description="read no more than so many; default: all")

    @field_validator("path")
    @classmethod
    def _some_path(cls, value: str) -> str:
        """(No `min_length`, by which pydantic refuses names that are no text.) The empty path is the folder one is in."""
        if not value:
            raise ValueError("is empty. Say . for the folder you are in.")
        return value


_NAME, _LONGEST_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", 200
"""Of runs and cards, which name folders: file systems allow 255 bytes."""


class Recipe(Strict):
    """What `latentlm train` reads."""

    name: str = Field(
        "run", pattern=_NAME, max_length=_LONGEST_NAME, description="of the run and its card; default: the file's name"
    )
    description: str = Field("", description="for the card")
    plugins: list[str] = Field(default_factory=list, description="plugins it needs; their parts win where another has the name")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


# -------------------------------------------------------------------------------------------------------------- cards


class WeightsSpec(Strict):
    """A file of weights: where, what hash, how big. Of a run of several processes that goes on, a folder with parts."""

    uri: str = Field(description="a safetensors file beside the card, or the folder of the parts")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of parts: that of their hashes in the order of names")
    size: int = Field(ge=1, description="bytes")
    parts: list[str] = Field(
        default_factory=list,
        exclude_if=lambda value: not value,
        description="files in the folder, each with a piece of every tensor, as torch.distributed.checkpoint writes them",
    )


class Card(Strict):
    """A model of the zoo. Card format version 1; 2 for a model with `latents`."""

    card_version: Literal[1, 2] = 1
    name: str = Field(pattern=_NAME, max_length=_LONGEST_NAME)
    description: str = ""
    status: Literal["trained", "architecture"]
    plugins: list[str] = Field(default_factory=list)
    model: ModelConfig
    tokenizer: str | None = Field(None, description='"bytes" or a tokenizer.json beside the card; None: bring your own')
    weights: WeightsSpec | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    baseline: str | None = Field(None, description="the card that overheads are measured against")
    licence: str = "Apache-2.0"
    paper: str | None = None
    training: dict[str, Any] = Field(default_factory=dict, description="how it was trained")
    scores: dict[str, Any] = Field(default_factory=dict, description="what was measured, and how")

    @model_validator(mode="after")
    def _trained_has_weights(self) -> Self:
        if (self.status == "trained") != (self.weights is not None):
            raise ValueError('a card with status "trained" has weights, one with status "architecture" has none.')
        if (self.card_version == 2) != bool(self.model.latents):
            raise ValueError("card_version is 2 for a model with `latents`, and 1 for any other: set it.")
        return self


# ------------------------------------------------------------------------------------------------- reading and errors


def parse(schema: type[Schema], data: Any, *, source: str) -> Schema:
    """Validate plain data against a schema; errors name `source`. Raises UserError."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise invalid(error, schema, source=source) from None
