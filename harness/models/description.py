"""What a pipeline is, from its index and the configs of its components, before any weight is read.

The same description is made of a folder, of a repository of the hub and of a pipeline that
somebody else has loaded: what is decided from it is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.files import choose_weights, files_of, has_weights, part_of
from harness.models.model_files import MODEL_INDEX
from harness.models.weights import DTYPES, Weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from harness.models.model_files import ModelFiles

DENOISER, SECOND_DENOISER = "transformer", "transformer_2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a pipeline.

    Attributes:
        library: ``diffusers``, ``transformers`` or what the index names.
        kind: Class.
        config: Content of its config; empty for tokenizers and processors.
    """

    library: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A pipeline before it is loaded.

    Attributes:
        name: What the user knows it by; messages begin with it.
        pipeline: Class of the pipeline.
        components: By name; those that are null in the index, or never called, are left out.
        stored: Type of most weights of the denoiser, ``bfloat16``; empty where it is not known.
        boundary: ``boundary_ratio`` of the index: the share of the timesteps below which the second
            of two denoisers serves. None where it stands nowhere.
    """

    name: str
    pipeline: str
    components: Mapping[str, Part]
    stored: str = ""
    boundary: Any = None

    def config(self, part: str) -> Mapping[str, Any]:
        """Config of a component, empty where there is no such component."""
        return self.components[part].config if part in self.components else {}

    def fact(self, path: str) -> Any:
        """A value of a config, ``transformer.num_layers``; None where it does not stand there."""
        part, _, key = path.partition(".")
        return self.config(part).get(key)

    def number(self, path: str, default: int) -> int:
        """A positive integer of a config.

        Args:
            path: ``transformer.patch_size``.
            default: What the class takes where the config says nothing.

        Raises:
            HarnessError: Something else stands there.
        """
        found = self.fact(path)
        if found is None:
            return default
        # some configs write whole numbers as 4.0
        whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
        if isinstance(found, bool) or not whole:
            raise self.wrong(path, "is no whole number")
        if found < 1:
            raise self.wrong(path, "is below 1")
        return int(found)

    def count(self, path: str, default: int) -> int:
        """Number of entries of a list of a config.

        Raises:
            HarnessError: Something else stands there.
        """
        found = self.fact(path)
        if found is None:
            return default
        if not isinstance(found, (list, tuple)) or not found:
            raise self.wrong(path, "is no list")
        return len(found)

    def wrong(self, path: str, why: str) -> HarnessError:
        """The error for a value of a config that cannot be meant."""
        part, _, key = path.partition(".")
        return HarnessError(
            f"model '{self.name}': {key} = {self.fact(path)!r} in the config of '{part}' {why}",
            "download the model again, or correct the config",
        )


def describe(files: ModelFiles, name: str) -> Description:
    """Read index and configs.

    Args:
        files: The files.
        name: What the user knows the model by.

    Raises:
        HarnessError: A file is missing or damaged, or the index is none of diffusers.
    """
    index = files.json(MODEL_INDEX)
    components: dict[str, Part] = {}
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        if part_of(part) is None:
            continue
        if len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            raise HarnessError(
                f"'{files.place}/{MODEL_INDEX}': '{part}' is {entry!r}, not [library, class]",
                "give a pipeline in diffusers format, as save_pretrained writes it",
            )
        components[part] = Part(
            library=entry[0], kind=entry[1], config=_config(files, part, entry[1])
        )
    pipeline = index.get("_class_name")
    return Description(
        name=name,
        pipeline=pipeline if isinstance(pipeline, str) else repr(pipeline),
        components=components,
        boundary=index.get("boundary_ratio"),
    )


def describe_loaded(pipeline: DiffusionPipeline) -> Description:
    """The description of a pipeline that is in memory."""
    parts = {n: part for n, part in pipeline.components.items() if part is not None}
    return Description(
        name=type(pipeline).__name__,
        pipeline=type(pipeline).__name__,
        components={
            name: Part(
                library=type(part).__module__.partition(".")[0],
                kind=type(part).__name__,
                config=_as_dict(getattr(part, "config", None)),
            )
            for name, part in parts.items()
        },
        stored=str(pipeline.transformer.dtype).removeprefix("torch."),
        boundary=getattr(getattr(pipeline, "config", None), "boundary_ratio", None),
    )


def component_weights(files: ModelFiles, description: Description, part: str) -> Weights:
    """What the weight files of a component hold: those that loading will read.

    Raises:
        HarnessError: There are none, one is missing or broken, or they are pickled.
    """
    name = weight_file(files, description, part)
    if not name.endswith(".json"):
        return Weights.of([files.header(name)])
    placed = shards(files, name)
    headers = {name: files.header(name) for name in dict.fromkeys(placed.values())}
    for tensor, name in placed.items():
        if headers[name].tensors and tensor not in headers[name].tensors:
            raise HarnessError(
                f"'{files.place}/{name}' lacks '{tensor}', which the index places there",
                "the files belong to different versions; download the component again",
            )
    return Weights.of(list(headers.values()))


def shards(files: ModelFiles, index: str) -> dict[str, str]:
    """The files of an index by the names of their tensors.

    Raises:
        HarnessError: The index is damaged, or a file that it names is missing.
    """
    folder = index.rpartition("/")[0]
    placed = files.json(index).get("weight_map")
    named = isinstance(placed, dict) and all(isinstance(n, str) for n in placed.values())
    if not placed or not named:
        raise HarnessError(f"'{files.place}/{index}' has no weight_map", "download the file again")
    found = {tensor: f"{folder}/{name}" for tensor, name in placed.items()}
    if missing := sorted(set(found.values()) - set(files.names())):
        raise HarnessError(
            f"'{files.place}/{missing[0]}' is missing: {len(missing)} of "
            f"{len(set(found.values()))} files that {index} names are not there",
            "download the missing files; an interrupted download leaves this",
        )
    return found


def weight_file(files: ModelFiles, description: Description, part: str) -> str:
    """The weight file of a component, or the index of several, that loading chooses.

    Raises:
        HarnessError: There is none that can be read.
    """
    own = files_of(files.names(), part)
    return f"{part}/{choose_weights(own, part, description.components[part].library).file}"


def quantized_storage(weights: Weights) -> str:
    """The type that most weights are kept in where it is none to compute in, else empty."""
    return "" if weights.dtype in (*DTYPES.values(), "") else weights.dtype


def _config(files: ModelFiles, part: str, kind: str) -> Mapping[str, Any]:
    """The config of a component; tokenizers and processors are not read."""
    if kind.endswith("Scheduler"):
        return files.json(f"{part}/scheduler_config.json")
    return files.json(f"{part}/config.json") if has_weights(part) else {}


def _as_dict(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    return dict(config.to_dict()) if hasattr(config, "to_dict") else {}
