from pathlib import Path

import torch

import fewstep as fs
from benchmarks.edit import GUIDANCES, SKIPS, SOLVERS, Source, measured, page

PAGE = Path(__file__).parents[2] / "docs" / "edit.md"


class Model:
    """Of class k, images of one grey, k / 10."""

    schedule, shape = fs.EDM(), (3, 32, 32)

    def conditioned(self, labels, guidance=1.0):
        means = torch.as_tensor(labels).reshape(-1, 1, 1, 1) / 10
        return fs.as_denoiser(lambda x, t: (x * 0.01 + means * t**2) / (0.01 + t**2), "sample", self.schedule)


def test_of_greys_an_edit_moves_all_by_the_difference_and_no_edit_moves_nothing():
    shown, wanted = torch.tensor([3, 5]), torch.tensor([5, 3])
    source = Source((shown / 10).reshape(2, 1, 1, 1).expand(2, 3, 32, 32) + 0.03, shown, wanted)
    classifier = lambda x: -(x.mean((1, 2, 3))[:, None] * 10 - torch.arange(10)).abs()  # noqa: E731
    rows, pictures = measured(Model(), classifier, source, skips=[6])
    # Samples are of the class's own grey, the images 0.03 beside theirs.
    assert rows[0][4] == "0.000"
    assert abs(float(rows[1][4]) - (0.2**2 + 0.03**2) ** 0.5) < 0.01
    for row in rows[2:]:
        assert float(row[3]) < 0.01  # the image comes back
        assert abs(float(row[4]) - 0.2) < 0.01
        assert row[6] == "100%"
    assert pictures.shape == (5, 3, 32, 32)
    assert len(page(rows).splitlines()) > 50


def test_the_page_is_what_the_command_writes_of_its_rows():
    text = PAGE.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 + len(SKIPS) * len(GUIDANCES) * (1 + len(SOLVERS))
    assert page(rows[2:]) == text
