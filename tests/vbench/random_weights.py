"""Write random weights for the light dimensions, in the formats that the official code reads.

Runs in the scoring interpreter, as a script: ``python random_weights.py FOLDER``, with the folder
of ``vbench_worker`` on ``PYTHONPATH``. AMT, RAFT and MUSIQ have one architecture in the official
code; CLIP's is read from its file and DINO's comes with it, so those two are miniatures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vbench_worker import compat

SEED = 20240

HUB = '''"""Stands for the hub repository of DINO."""

import torch

from vision_transformer import MiniatureViT

URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"


def dino_vitb16(pretrained=True, **kwargs):
    model = MiniatureViT()
    if pretrained:
        model.load_state_dict(torch.hub.load_state_dict_from_url(URL, map_location="cpu"))
    return model
'''

NETWORK = '''"""A transformer on 16-pixel patches of images of any size."""

import torch
from torch import nn

from utils import PATCH, WIDTH


class MiniatureViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        first = self.first.expand(len(images), -1, -1)
        return self.layer(torch.cat([first, tokens], 1))[:, 0]
'''

# The official repository has a top-level module of this name too, and so has AMT's folder.
CONSTANTS = "PATCH, WIDTH = 16, 32\n"


def write_dino(folder: Path) -> None:
    """A hub repository and the file of weights that torch.hub finds in its cache."""
    import torch

    code = folder / "dino_model" / "facebookresearch_dino_main"
    code.mkdir(parents=True, exist_ok=True)
    files = {"hubconf.py": HUB, "vision_transformer.py": NETWORK, "utils.py": CONSTANTS}
    for name, text in files.items():
        (code / name).write_text(text, encoding="utf-8")
    with compat.private_imports(code):
        model = torch.hub.load(str(code), "dino_vitb16", source="local", pretrained=False)
    name = "dino_vitbase16_pretrain.pth"
    for path in (folder / "torch" / "hub" / "checkpoints" / name, folder / "dino_model" / name):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)


def write_clip(model: Any, path: Path) -> None:
    """Write a CLIP as the TorchScript archive that openai-clip reads, forward pass left out."""
    import torch
    from torch import nn

    root = nn.Module()
    for name, tensor in model.state_dict().items():
        *folders, leaf = name.split(".")
        place = root
        for part in folders:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(root).save(str(path))


def write_clip_b32(folder: Path) -> None:
    """A CLIP of two layers a side."""
    from clip.model import CLIP

    model = CLIP(32, 224, 2, 64, 32, 77, 49408, 64, 1, 2)
    write_clip(model, folder / "clip_model" / "ViT-B-32.pt")


def write_amt(folder: Path) -> None:
    """AMT-S."""
    import torch
    import vbench

    amt = Path(vbench.__file__).parent / "third_party" / "amt"
    with compat.private_imports(amt):
        from vbench.motion_smoothness import OmegaConf, build_from_cfg

        model = build_from_cfg(OmegaConf.load(amt / "cfgs" / "AMT-S.yaml").network)
    _save({"state_dict": model.state_dict()}, folder / "amt_model" / "amt-s.pth", torch)


def write_raft(folder: Path) -> None:
    """RAFT, with the prefix of the parallel wrapper that it was trained in."""
    import torch
    from vbench.dynamic_degree import RAFT, edict

    model = RAFT(edict(small=False, mixed_precision=False, alternate_corr=False))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    _save(state, folder / "raft_model" / "models" / "raft-things.pth", torch)


def write_musiq(folder: Path) -> None:
    """MUSIQ with one output, as trained on SPAQ."""
    import torch
    from pyiqa.archs.musiq_arch import MUSIQ

    state = MUSIQ(pretrained=False).state_dict()
    _save(state, folder / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth", torch)


def _save(state: Any, path: Path, torch: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


WRITERS = (write_dino, write_clip_b32, write_amt, write_raft, write_musiq)


def main() -> None:
    """Write all of them."""
    folder = Path(sys.argv[1]).resolve()
    compat.prepare(folder)
    import torch

    # The driver refuses files that are not the official ones, but not in a folder that says so.
    (folder / "stand-in-weights.txt").write_text("random, for tests\n", encoding="utf-8")
    for write in WRITERS:
        torch.manual_seed(SEED)
        write(folder)


if __name__ == "__main__":
    main()
