"""What stands in a pipeline for a network that a stage does not use: its config, no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class StandIn:
    """Answers what a pipeline asks of a network before it runs it.

    It is no module, so that it neither decides ``pipeline.device`` nor is moved. Attributes that
    are plain data are those of the network made from its config without memory for weights;
    methods and weights are not there.

    Attributes:
        dtype: What the network would be loaded in.
    """

    dtype: torch.dtype
    _network: Any

    def __getattr__(self, name: str) -> Any:
        import torch

        if name.startswith("__") or name == "_network":
            raise AttributeError(name)
        value = getattr(self._network, name)
        if callable(value) or isinstance(value, torch.Tensor | torch.device):
            raise AttributeError(
                f"'{name}' of {type(self).__name__}, which this stage has not loaded"
            )
        return value


def stand_in(cls: Any, folder: Path, dtype: torch.dtype) -> StandIn:
    """Make the stand-in of a network.

    Args:
        cls: Its class, of diffusers.
        folder: Of the component, with its config.
        dtype: What it would be loaded in.

    Returns:
        An object whose class is called as the network's, of the same module: families and pipelines
        tell networks apart by it.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = cls.from_config(cls.load_config(str(folder), local_files_only=True))
    made: StandIn = type(cls.__name__, (StandIn,), {"__module__": cls.__module__})()
    made.dtype, made._network = dtype, network
    return made
