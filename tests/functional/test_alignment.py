import pytest
import torch

from lightning_tuning.functional.alignment import TURNS, better_turn, id_offset

PICTURE = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TURNS)
def test_each_turn_is_found_by_what_undoes_it(name):
    found = better_turn(PICTURE, TURNS[name](PICTURE))
    assert found is not None
    torch.testing.assert_close(TURNS[found](TURNS[name](PICTURE)), PICTURE)


def test_pictures_that_need_no_turn():
    assert better_turn(PICTURE, PICTURE) is None
    assert better_turn(PICTURE, PICTURE + 9) is None
    assert better_turn(PICTURE, PICTURE.roll(1, 0).roll(2, 1)) is None
    assert better_turn(PICTURE, PICTURE[:, :4]) is None
    symmetric = PICTURE + PICTURE.flip(-1)
    assert better_turn(symmetric, symmetric.flip(-1)) is None
    assert better_turn(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)) is None
    wide = PICTURE[:, :4]
    assert better_turn(wide, wide.flip(-2)) == "turned upside down"


def test_offsets_of_ids():
    counts = torch.zeros(50).long()
    counts[5:20] = torch.arange(15) * 7 % 31 + 3
    for offset in (-5, -1, 3, 30):
        assert id_offset(counts, counts.roll(offset)) == offset
    assert id_offset(counts, counts) == 0
    assert id_offset(counts, (counts // 10).roll(30)) == 0, "too few"
    assert id_offset(counts, torch.zeros(60).long()) == 0
    spread = torch.ones(50).long() * 9
    assert id_offset(counts, spread) == 0
