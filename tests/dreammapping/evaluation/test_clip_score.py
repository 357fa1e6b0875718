from __future__ import annotations

import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.evaluation.clip_score import clip_scores


def test_it_is_a_hundred_cosines_whatever_the_lengths():
    images, text = torch.tensor([[2.0, 0.0], [3.0, 3.0], [-1.0, 0.0]]), torch.tensor([5.0, 0.0])
    torch.testing.assert_close(clip_scores(images, text), torch.tensor([100.0, 50.0**0.5 * 10, -100.0]))
    assert clip_scores(images.half(), text).dtype == torch.float32


@pytest.mark.parametrize(("images", "text"), [(torch.ones(2, 3), torch.ones(2)), (torch.ones(2), torch.ones(2)), (torch.ones(2, 3), torch.ones(1, 3))])
def test_shapes_that_do_not_fit_are_told(images, text):
    with pytest.raises(DreamMappingError, match=r"must be \[N, D\] and \[D\]"):
        clip_scores(images, text)
