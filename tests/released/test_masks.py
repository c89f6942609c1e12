"""The released frameworks' mask files."""

import pytest
import small_models as small
import torch

from lfpr import released


def test_mask_files_of_the_frameworks_round_trip(tmp_path):
    theirs = small.RELEASED_MASKS / "clip-vit-base-patch16_0.75_seed_1"
    masks = released.load_masks(theirs)
    assert masks.equal(released.load_masks(theirs / "head_mask.pt", theirs / "neuron_mask.pt"))
    folder = tmp_path / "outputs" / "clip-vit-base-patch16" / "mscoco" / "0.75" / "seed_1"
    released.save_masks(masks, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["head_mask.pt", "neuron_mask.pt"]
    for name in ("head_mask.pt", "neuron_mask.pt"):
        a, b = (torch.load(place / name, map_location="cpu", weights_only=True) for place in (folder, theirs))
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, b)
    assert released.load_masks(folder).equal(masks)
    with pytest.raises(FileNotFoundError, match=r"head_mask\.pt"):
        released.load_masks(tmp_path)


def test_bad_mask_files_are_refused(tmp_path):
    cut = tmp_path / "cut"
    cut.write_bytes(b"PK\x03\x04 of something")
    with pytest.raises(ValueError, match="not a readable tensor file"):
        released.load_masks(cut, cut)
    torch.save({"a": 1}, cut)
    with pytest.raises(ValueError, match="expected a mask tensor, found dict"):
        released.load_masks(cut, cut)
    torch.save([torch.ones(2), torch.ones(3)], cut)
    with pytest.raises(ValueError, match="rows of different lengths"):
        released.load_masks(cut, cut)
