"""The released frameworks' mask files."""

import pytest
import small_models as small
import torch

from lfpr import released
from lfpr.encoder import prunable
from lfpr.masks import Masks
from lfpr.released.masks import FILES


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


def test_a_head_mask_of_sensitivity_pruning_leaves_all_neurons(tmp_path):
    encoder = prunable(small.reference_clip().vision_model)
    masks = Masks.ones(encoder)
    masks.heads[1, 1:] = 0
    released.save_head_mask(masks, 3, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["head_mask_2.pt"]
    assert torch.equal(torch.load(tmp_path / "head_mask_2.pt", weights_only=True), masks.heads)  # a plain tensor
    assert released.load_masks(tmp_path / "head_mask_2.pt", encoder=encoder).equal(masks)
    with pytest.raises(FileNotFoundError, match=r"a folder has head_mask\.pt and .*; a head_mask_I\.pt is to be named"):
        released.load_masks(tmp_path, encoder=encoder)
    with pytest.raises(ValueError, match="is a head mask alone: give the neuron mask, or the encoder"):
        released.load_masks(tmp_path / "head_mask_2.pt")
    released.save_masks(masks, tmp_path)
    assert released.load_masks(tmp_path / "head_mask.pt").equal(masks)  # with what lies beside it
    theirs = small.RELEASED_MASKS / "clip-vit-base-patch16_0.75_seed_1"
    with pytest.raises(ValueError, match=r"heads \(12, 12\) and neurons \(12, 3072\), the model has \(\("):
        released.load_masks(theirs, encoder=encoder)


def test_folders_of_the_fork_are_found_by_either_name_of_the_model(tmp_path):
    name = "openai/clip-vit-base-patch16"
    folder = released.outputs(tmp_path, name, 0.75, 1)
    assert folder == tmp_path / "outputs/openai/clip-vit-base-patch16/mscoco/0.75/seed_1"
    folder.mkdir(parents=True)
    assert released.outputs(tmp_path, "clip-vit-base-patch16", 0.75, 1) == folder
    short = tmp_path / "outputs/clip-vit-base-patch16/mscoco/0.6/seed_1"
    short.mkdir(parents=True)
    assert released.outputs(tmp_path, name, 0.6, 1) == short


def test_bad_mask_files_are_refused(tmp_path):
    cut = tmp_path / "cut"
    cut.write_bytes(b"PK\x03\x04 of something")
    with pytest.raises(ValueError, match="not a readable tensor file"):
        released.load_masks(cut, cut)
    torch.save({"a": 1}, cut)
    with pytest.raises(ValueError, match="expected a mask tensor, found dict"):
        released.load_masks(cut, cut)
    torch.save(torch.tensor([[1.0, torch.nan]]), cut)
    with pytest.raises(ValueError, match="NaN or infinite mask values"):
        released.load_masks(cut, cut)
    torch.save([torch.ones(2), torch.ones(3)], cut)
    with pytest.raises(ValueError, match="rows of different lengths"):
        released.load_masks(cut, cut)


@pytest.mark.parametrize(
    ("heads", "neurons", "says"),
    [
        (
            torch.ones(3),
            torch.ones(2, 5),
            r"head_mask\.pt: expected numbers .*found torch\.float32 \[3\]",
        ),
        (torch.ones(2, 3, 1), torch.ones(2, 5), r"head_mask\.pt: expected numbers"),
        (torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 5), r"head_mask\.pt: expected numbers .*complex64"),
        (
            torch.ones(2, 3).to_sparse(),
            torch.ones(2, 5),
            "head_mask.pt is not a readable tensor file: the name torch._utils._rebuild_sparse_tensor",
        ),
        (torch.ones(2, 3), torch.ones(3, 5), r"\[?\(?2, 3"),
        (torch.ones(2, 3), torch.full((2, 5), torch.inf), r"neuron_mask\.pt: NaN or infinite"),
        ([torch.ones(3), torch.ones(3).int()], torch.ones(2, 5), "rows of different lengths"),
        ([[1.0, 1.0]], torch.ones(2, 5), "expected a mask tensor, found list"),
        (1.0, torch.ones(2, 5), "expected a mask tensor, found float"),
    ],
)
def test_masks_that_are_none_are_refused(tmp_path, heads, neurons, says):
    for name, mask in zip(FILES, (heads, neurons), strict=True):
        torch.save(mask, tmp_path / name)
    with pytest.raises(ValueError, match=says):
        released.load_masks(tmp_path)
    for path in (None, 5, b"x"):
        with pytest.raises(ValueError, match="expected a path"):
            released.load_masks(path)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("zipped", [True, False])
def test_masks_of_any_numbers_are_read(tmp_path, dtype, zipped):
    masks = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype), torch.tensor([[1, 0], [1, 1]]).to(dtype)
    for name, mask in zip(FILES, masks, strict=True):
        torch.save(list(mask) if zipped else mask, tmp_path / name, _use_new_zipfile_serialization=zipped)
    read = released.load_masks(tmp_path)
    assert read.heads.dtype == torch.float32 and read.equal(Masks(*(mask.float() for mask in masks)))
