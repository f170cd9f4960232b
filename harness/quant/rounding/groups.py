"""Until the last import is gone."""

from harness.quant.layers.group_size import group_note  # noqa: F401
