import pytest

from fewshot.datasets import class_folders, query_photos
from fewshot.gallery import Gallery


@pytest.mark.data
@pytest.mark.weights
def test_default_backbone_recognises_novel_classes_of_real_photos(real_data, tmp_path):
    """A guard, not the measurement (benchmarks/protocol.py)."""
    with Gallery(tmp_path / "index", create=True) as gallery:
        reports = list(gallery.enroll(class_folders(real_data / "novel" / "support")))
        assert sum(report.enrolled for report in reports) == 280
        assert all(report.refused == () for report in reports)
        predictions = list(gallery.query(query_photos([real_data / "novel" / "query"])))
    right = [prediction.matches[0].label == prediction.file.split("/")[-2] for prediction in predictions]
    assert len(right) == 566
    assert sum(right) / len(right) >= 0.75
