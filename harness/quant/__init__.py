"""The quantization toolkit.

Grids, transforms, rounding, calibration, the quantized linear and its artifact.
Nothing here knows about experiments, stores or tables; methods combine these parts. They import
them from here; a part is loaded when it is named, so that importing the package costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # isort: off
    # Each name twice hands it on to type checkers; sorted imports would have one statement a name.
    from harness.models.block_input import BlockInput as BlockInput, Sample as Sample
    from harness.models.families.base import (
        FEED_FORWARD as FEED_FORWARD,
        Family as Family,
        InputGroup as InputGroup,
        Role as Role,
        linear_at as linear_at,
        target_groups as target_groups,
        target_linears as target_linears,
    )
    from harness.models.trajectories import CalibrationPool as CalibrationPool
    from harness.quant.calibration.attention_mass import (
        block_attention_mass as block_attention_mass,
        token_weights as token_weights,
    )
    from harness.quant.calibration.capture import (
        branch_turns as branch_turns,
        named_arguments as named_arguments,
        observing as observing,
        run_block as run_block,
    )
    from harness.quant.calibration.hessian import (
        Hessian as Hessian,
        linear_hessians as linear_hessians,
        output_error as output_error,
    )
    from harness.quant.calibration.salience import (
        Norm as Norm,
        Selection as Selection,
        choose_samples as choose_samples,
        pool_salience as pool_salience,
    )
    from harness.quant.calibration.samples import (
        shortage as shortage,
        uniform_samples as uniform_samples,
    )
    from harness.quant.calibration.spill import SpilledInputs as SpilledInputs
    from harness.quant.calibration.statistics import (
        InputSummary as InputSummary,
        channel_absmax as channel_absmax,
        channel_absmax_by_step as channel_absmax_by_step,
        sample_values as sample_values,
        summarise_inputs as summarise_inputs,
    )
    from harness.quant.calibration.walk import Walk as Walk, WalkedBlock as WalkedBlock
    from harness.quant.layers.activation import (
        ActivationSpec as ActivationSpec,
        activation_codes as activation_codes,
        quantize_activation as quantize_activation,
    )
    from harness.quant.layers.apply import (
        activation_of as activation_of,
        layer_reports as layer_reports,
        quantize_linears_ as quantize_linears_,
    )
    from harness.quant.layers.grid import (
        SCALE_FLOOR as SCALE_FLOOR,
        Affine as Affine,
        affine as affine,
        code_range as code_range,
        decode as decode,
        encode as encode,
        expand as expand,
        fake_quantize as fake_quantize,
        grouped as grouped,
        storable as storable,
        weight_grid as weight_grid,
    )
    from harness.quant.layers.group_size import (
        fitting_group as fitting_group,
        group_note as group_note,
    )
    from harness.quant.layers.hadamard import hadamard_shape as hadamard_shape
    from harness.quant.layers.layers import (
        QuantizedLayer as QuantizedLayer,
        replace_module_ as replace_module_,
    )
    from harness.quant.layers.library import (
        LibraryLinear as LibraryLinear,
        LibraryScheme as LibraryScheme,
        cuda_capability as cuda_capability,
        library_linears_ as library_linears_,
        not_installed as not_installed,
        only_at as only_at,
    )
    from harness.quant.layers.library_parts import stay_plain_ as stay_plain_
    from harness.quant.layers.linear import (
        QuantLinear as QuantLinear,
        WeightSpec as WeightSpec,
        quantize_linear as quantize_linear,
        stored_grid as stored_grid,
        transformed_weight as transformed_weight,
    )
    from harness.quant.layers.low_rank import LowRank as LowRank, token_gains as token_gains
    from harness.quant.layers.policy import (
        DeltaPolicy as DeltaPolicy,
        TimestepPolicy as TimestepPolicy,
        attach_policy_ as attach_policy_,
        delta_schedule as delta_schedule,
        relative_change as relative_change,
    )
    from harness.quant.layers.switch import SwitchedLinear as SwitchedLinear
    from harness.quant.layers.transform import (
        ChannelScale as ChannelScale,
        Hadamard as Hadamard,
        Kronecker as Kronecker,
    )
    from harness.quant.learning.block_trainer import (
        BlockTask as BlockTask,
        cosine_schedule as cosine_schedule,
        shuffled as shuffled,
        train_block as train_block,
    )
    from harness.quant.learning.learned_blocks import (
        PAPER_EPOCHS as PAPER_EPOCHS,
        BlockLearner as BlockLearner,
        LearnedOptions as LearnedOptions,
        learning_work as learning_work,
        short_training as short_training,
    )
    from harness.quant.rounding.clip import (
        percentile_grid as percentile_grid,
        search_clip as search_clip,
        search_output_clip as search_output_clip,
    )
    from harness.quant.rounding.gptq import (
        PERCDAMP as PERCDAMP,
        gptq as gptq,
        gptq_current_groups as gptq_current_groups,
    )
    from harness.quant.rounding.gptq_linear import gptq_linear as gptq_linear
    from harness.quant.rounding.smoothing import (
        apply_scale_ as apply_scale_,
        apply_scales_ as apply_scales_,
        smoothing_scale as smoothing_scale,
        weight_absmax as weight_absmax,
    )
    from harness.store.kept import Kept as Kept

_HOMES = {
    "FEED_FORWARD": "harness.models.families.base",
    "PAPER_EPOCHS": "harness.quant.learning.learned_blocks",
    "PERCDAMP": "harness.quant.rounding.gptq",
    "SCALE_FLOOR": "harness.quant.layers.grid",
    "ActivationSpec": "harness.quant.layers.activation",
    "Affine": "harness.quant.layers.grid",
    "BlockInput": "harness.models.block_input",
    "BlockLearner": "harness.quant.learning.learned_blocks",
    "BlockTask": "harness.quant.learning.block_trainer",
    "CalibrationPool": "harness.models.trajectories",
    "ChannelScale": "harness.quant.layers.transform",
    "DeltaPolicy": "harness.quant.layers.policy",
    "Family": "harness.models.families.base",
    "Hadamard": "harness.quant.layers.transform",
    "Hessian": "harness.quant.calibration.hessian",
    "InputGroup": "harness.models.families.base",
    "InputSummary": "harness.quant.calibration.statistics",
    "Kept": "harness.store.kept",
    "Kronecker": "harness.quant.layers.transform",
    "LearnedOptions": "harness.quant.learning.learned_blocks",
    "LibraryLinear": "harness.quant.layers.library",
    "LibraryScheme": "harness.quant.layers.library",
    "LowRank": "harness.quant.layers.low_rank",
    "Norm": "harness.quant.calibration.salience",
    "QuantLinear": "harness.quant.layers.linear",
    "QuantizedLayer": "harness.quant.layers.layers",
    "Role": "harness.models.families.base",
    "Sample": "harness.models.block_input",
    "Selection": "harness.quant.calibration.salience",
    "SpilledInputs": "harness.quant.calibration.spill",
    "SwitchedLinear": "harness.quant.layers.switch",
    "TimestepPolicy": "harness.quant.layers.policy",
    "Walk": "harness.quant.calibration.walk",
    "WalkedBlock": "harness.quant.calibration.walk",
    "WeightSpec": "harness.quant.layers.linear",
    "activation_codes": "harness.quant.layers.activation",
    "activation_of": "harness.quant.layers.apply",
    "affine": "harness.quant.layers.grid",
    "apply_scale_": "harness.quant.rounding.smoothing",
    "apply_scales_": "harness.quant.rounding.smoothing",
    "attach_policy_": "harness.quant.layers.policy",
    "block_attention_mass": "harness.quant.calibration.attention_mass",
    "branch_turns": "harness.quant.calibration.capture",
    "channel_absmax": "harness.quant.calibration.statistics",
    "channel_absmax_by_step": "harness.quant.calibration.statistics",
    "choose_samples": "harness.quant.calibration.salience",
    "code_range": "harness.quant.layers.grid",
    "cosine_schedule": "harness.quant.learning.block_trainer",
    "cuda_capability": "harness.quant.layers.library",
    "decode": "harness.quant.layers.grid",
    "delta_schedule": "harness.quant.layers.policy",
    "encode": "harness.quant.layers.grid",
    "expand": "harness.quant.layers.grid",
    "fake_quantize": "harness.quant.layers.grid",
    "fitting_group": "harness.quant.layers.group_size",
    "gptq": "harness.quant.rounding.gptq",
    "gptq_current_groups": "harness.quant.rounding.gptq",
    "gptq_linear": "harness.quant.rounding.gptq_linear",
    "group_note": "harness.quant.layers.group_size",
    "grouped": "harness.quant.layers.grid",
    "hadamard_shape": "harness.quant.layers.hadamard",
    "layer_reports": "harness.quant.layers.apply",
    "learning_work": "harness.quant.learning.learned_blocks",
    "library_linears_": "harness.quant.layers.library",
    "linear_at": "harness.models.families.base",
    "linear_hessians": "harness.quant.calibration.hessian",
    "named_arguments": "harness.quant.calibration.capture",
    "not_installed": "harness.quant.layers.library",
    "observing": "harness.quant.calibration.capture",
    "only_at": "harness.quant.layers.library",
    "output_error": "harness.quant.calibration.hessian",
    "percentile_grid": "harness.quant.rounding.clip",
    "pool_salience": "harness.quant.calibration.salience",
    "quantize_activation": "harness.quant.layers.activation",
    "quantize_linear": "harness.quant.layers.linear",
    "quantize_linears_": "harness.quant.layers.apply",
    "relative_change": "harness.quant.layers.policy",
    "replace_module_": "harness.quant.layers.layers",
    "run_block": "harness.quant.calibration.capture",
    "sample_values": "harness.quant.calibration.statistics",
    "search_clip": "harness.quant.rounding.clip",
    "search_output_clip": "harness.quant.rounding.clip",
    "short_training": "harness.quant.learning.learned_blocks",
    "shortage": "harness.quant.calibration.samples",
    "shuffled": "harness.quant.learning.block_trainer",
    "smoothing_scale": "harness.quant.rounding.smoothing",
    "stay_plain_": "harness.quant.layers.library_parts",
    "storable": "harness.quant.layers.grid",
    "stored_grid": "harness.quant.layers.linear",
    "summarise_inputs": "harness.quant.calibration.statistics",
    "target_groups": "harness.models.families.base",
    "target_linears": "harness.models.families.base",
    "token_gains": "harness.quant.layers.low_rank",
    "token_weights": "harness.quant.calibration.attention_mass",
    "train_block": "harness.quant.learning.block_trainer",
    "transformed_weight": "harness.quant.layers.linear",
    "uniform_samples": "harness.quant.calibration.samples",
    "weight_absmax": "harness.quant.rounding.smoothing",
    "weight_grid": "harness.quant.layers.grid",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'harness.quant' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOMES))
