"""The measures that let vbench run beside newer libraries."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import types
import urllib.request
from pathlib import Path
from typing import Any

from checking import WEIGHTS, raises, shelf
from vbench_worker import compat
from vbench_worker.substitute import replaced


def check_torchvision_imports_where_it_would_not() -> None:
    import torch

    alone = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    import torchvision

    assert torchvision.transforms.Resize
    # `prepare` has run: where it was needed both operators have a schema now.
    if alone.returncode != 0:
        assert b"nms does not exist" in alone.stderr, alone.stderr
        assert torch.ops.torchvision.nms
        assert torch.ops.torchvision.qnms
    assert compat.torchvision_schemas() == compat.NOT_NEEDED


def check_torchvision_of_a_cuda_torch_is_left_alone() -> None:
    import torch

    with replaced(torch.version, cuda="13.0"):
        assert compat.torchvision_schemas() == compat.NOT_NEEDED


def check_a_pkg_resources_without_packaging_gets_it() -> None:
    before = sys.modules.pop("pkg_resources", None)
    try:
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        assert compat.packaging_in_pkg_resources() == compat.APPLIED
        from pkg_resources import packaging

        assert packaging.version.parse("1.10") > packaging.version.parse("1.9")
        assert compat.packaging_in_pkg_resources() == compat.NOT_NEEDED
    finally:
        del sys.modules["pkg_resources"]
        if before is not None:
            sys.modules["pkg_resources"] = before


def check_a_numpy_without_function_base_gets_it() -> None:
    name = "numpy.lib.function_base"
    before = sys.modules.pop(name, None)
    try:
        with replaced(importlib.util, find_spec=lambda _: None):
            assert compat.function_base_in_numpy() == compat.APPLIED
        from numpy.lib.function_base import disp

        assert callable(disp)
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def check_umt_is_not_given_the_cache_dir_of_timm() -> None:
    from vbench.third_party.umt.models import modeling_finetune

    given: dict[str, Any] = {}

    class Network:
        def __init__(self, **options: Any) -> None:
            given.update(options)

    with replaced(modeling_finetune, VisionTransformer=Network):
        compat.without_cache_dir_(modeling_finetune)
        modeling_finetune.vit_large_patch16_224(cache_dir=None, num_classes=7)
    assert "cache_dir" not in given
    assert given["num_classes"] == 7


def check_nothing_records_gradients() -> None:
    import torch

    parameter = torch.ones(1, requires_grad=True)
    assert not (2 * parameter).requires_grad


def check_kernels_of_a_gpu_are_deterministic() -> None:
    import torch

    with replaced(torch.cuda, is_available=lambda: False):
        assert compat.steady_numbers() == compat.NOT_NEEDED
    with replaced(torch.cuda, is_available=lambda: True):
        assert compat.steady_numbers() == compat.APPLIED
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)


def check_paths_lead_to_the_weights() -> None:
    import torch
    from vbench.utils import CACHE_DIR

    assert str(WEIGHTS) == CACHE_DIR
    assert torch.hub.get_dir() == str(WEIGHTS / "torch" / "hub")
    assert Path.cwd() == WEIGHTS


def check_no_program_downloads() -> None:
    from vbench_worker.judges import MissingFileError

    url = "https://host.invalid/a/file.pth"
    for command in (["wget", url, "-P", "/cache/x"], ["/usr/bin/wget", "-P", "/cache/x", url]):
        assert "/cache/x/file.pth is missing" in raises(MissingFileError, subprocess.run, command)
    for command in (["git", "clone", url, "/cache/dino"], ["unzip", "-d", "/c", "/cache/dino"]):
        assert "/cache/dino is missing" in raises(MissingFileError, subprocess.run, command)
    assert subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0


def check_no_library_downloads() -> None:
    import torch
    from vbench_worker.judges import MissingFileError

    url = "https://host.invalid/a/file.pth"
    assert url in raises(MissingFileError, urllib.request.urlopen, url)
    assert url in raises(MissingFileError, torch.hub.load_state_dict_from_url, url)
    for address in (("host.invalid", 443), ("192.0.2.1", 443)):
        assert address[0] in raises(MissingFileError, socket.create_connection, address)


def check_the_package_names_the_file_that_is_missing() -> None:
    from vbench import utils
    from vbench_worker.judges import MissingFileError
    from vbench_worker.substitute import paths

    with replaced(utils, CACHE_DIR="/nowhere-vbench"), replaced(os, makedirs=lambda *_, **__: None):
        for dimension, file in (
            ("motion_smoothness", "amt_model/amt-s.pth"),
            ("subject_consistency", "dino_model/facebookresearch_dino_main/"),
            ("dynamic_degree", "models.zip"),
        ):
            assert file in raises(MissingFileError, paths, dimension)


def check_a_checkpoint_with_more_than_tensors_loads_only_where_it_is_trusted() -> None:
    import torch

    module = types.SimpleNamespace(torch=torch)
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"state_dict": {}, "args": argparse.Namespace(a=1)}, file.name)
        raises(Exception, module.torch.load, file.name)
        with compat.trusting_load(module):
            assert module.torch.load(file.name, map_location="cpu")["args"].a == 1
            assert module.torch.nn is torch.nn
        raises(Exception, module.torch.load, file.name)


def check_amt_and_dino_load_in_either_order() -> None:
    from vbench_worker.light import AMT, DINO

    path = list(sys.path)
    for order in ((AMT, DINO), (DINO, AMT)):
        models = shelf()
        for name in order:
            models.get(name)
        assert sys.path == path
        assert not {"utils", "networks", "hubconf", "vision_transformer"} & sys.modules.keys()
