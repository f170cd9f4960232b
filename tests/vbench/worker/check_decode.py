"""One decoding for all dimensions."""

from __future__ import annotations

from typing import Any

from checking import CLIP, opened, raises
from vbench_worker.substitute import replaced


def check_the_official_readers_see_the_decoded_frames() -> None:
    import numpy as np
    import torch
    from vbench.temporal_flickering import get_frames
    from vbench.utils import load_video, read_frames_decord_by_fps
    from vbench_worker.decode import reading

    clip = opened()
    path = str(clip.link)

    def read() -> list[np.ndarray]:
        return [
            load_video(path).numpy(),
            load_video(path, num_frames=2, return_tensor=False),
            load_video(path, num_frames=16, return_tensor=False),
            read_frames_decord_by_fps(path, num_frames=8, sample="middle").numpy(),
            np.stack(get_frames(path)),
        ]

    theirs = read()
    before = clip.readers.decodes
    with reading(clip):
        ours = read()
        again = read()
    assert before == 0
    assert clip.readers.decodes == 1
    assert clip.readers.scaled == 0
    for a, b, c in zip(theirs, ours, again, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
    assert isinstance(load_video(path), torch.Tensor)


def check_a_dimension_that_scales_while_decoding_gets_the_real_reader() -> None:
    import numpy as np
    from vbench.utils import load_video
    from vbench_worker.decode import reading

    clip = opened()
    options: dict[str, Any] = {"num_frames": 2, "return_tensor": False, "width": 96, "height": 64}
    theirs = load_video(str(clip.link), **options)
    with reading(clip):
        ours = load_video(str(clip.link), **options)
    assert np.array_equal(theirs, ours)
    assert clip.readers.scaled == 1


def check_no_dimension_can_change_the_frames_of_the_next() -> None:
    clip = opened()
    for frames in (clip.frames_rgb, clip.frames_bgr):
        raises(ValueError, frames.__setitem__, 0, 0)


def check_readers_that_disagree_are_both_used() -> None:
    import numpy as np
    from vbench_worker import decode

    true = decode._read_decord(CLIP)
    other = true.copy()
    other[0, 0, 0, 0] ^= 1
    readers = decode.Readers()
    with replaced(decode, _read_decord=lambda _: other.copy()):
        footage = decode.read_footage(CLIP, readers)
        assert np.array_equal(footage.rgb, other)
    assert np.array_equal(footage.bgr[..., ::-1], true)
    counts = readers.counts()
    assert (counts["decodes"], counts["reader_checks"], counts["readers_agree"]) == (2, 1, False)


def check_frames_that_decord_cannot_hand_out_are_those_of_cv2() -> None:
    import numpy as np
    from vbench_worker import decode

    readers = decode.Readers()
    with replaced(decode, _read_decord=lambda _: None):
        footage = decode.read_footage(CLIP, readers)
        assert np.array_equal(footage.rgb, footage.bgr[..., ::-1])
    assert readers.counts()["refused_by_decord"] == 1


def check_a_dimension_that_reads_by_cv2_does_not_start_decord() -> None:
    from vbench_worker import decode

    with replaced(decode, _read_decord=None):
        clip = opened()
        assert clip.shape == (5, 128, 128, 3)
        assert clip.frames_bgr.shape == clip.shape
    assert clip.readers.counts()["reader_checks"] == 0


def check_links_have_the_official_names() -> None:
    upper, lower = opened("A fantasy landscape"), opened("a fantasy landscape", "clip2")
    assert upper.link.name == "A fantasy landscape-0.mp4"
    assert lower.link.name == "a fantasy landscape-0.mp4"
    assert upper.link.resolve() == CLIP
    # 255 bytes is the limit of a name, and a cedilla takes two.
    assert opened("ç" * 124 + "x").named
    for prompt in ("ç" * 125, "either/or"):
        clip = opened(prompt)
        assert not clip.named
        assert clip.link.name == "clip-0.mp4"
