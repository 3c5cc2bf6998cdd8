"""Scenes that are composed of small pictures."""

import numpy
import pytest

from edgepack.data.datasets._scenes import Scenes, composed

_LABELS = numpy.array([0, 1, 2])
_OBJECTS = numpy.zeros((3, 8, 8), numpy.uint8)
_OBJECTS[0, 1:7, 2:6], _OBJECTS[1, 3:5], _OBJECTS[2, :, 3:5] = 255, 200, 220


@pytest.fixture(scope="module")
def made() -> Scenes:
    return composed(_OBJECTS, _LABELS, count=40, side=48, most=3, seed=7)


def test_scenes_are_of_their_seed(made: Scenes) -> None:
    again, other = (composed(_OBJECTS, _LABELS, count=40, side=48, most=3, seed=seed) for seed in (7, 8))
    assert (again.pictures == made.pictures).all() and (again.masks == made.masks).all()
    assert (other.pictures != made.pictures).any()


def test_every_scene_has_objects_of_known_labels(made: Scenes) -> None:
    assert made.pictures.shape == (40, 1, 48, 48) and made.masks.shape == (40, 48, 48)
    assert {*numpy.unique(made.labels)} == {-1, 0, 1, 2} and (made.labels[:, 0] >= 0).all()
    assert ((made.labels >= 0) == (made.boxes[:, :, 2] > 0)).all()


def test_boxes_enclose_the_pixels_of_their_class(made: Scenes) -> None:
    for mask, boxes, labels in zip(made.masks, made.boxes.astype(int), made.labels, strict=True):
        outside = mask.copy()
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            if label >= 0:
                assert 0 <= left < right <= 48 and 0 <= top < bottom <= 48
                assert (mask[top:bottom, left:right] == 1 + label).any()
                outside[top:bottom, left:right] = 0
        assert not outside.any()


def test_objects_are_brighter_than_the_background(made: Scenes) -> None:
    pictures = made.pictures[:, 0]
    assert pictures[made.masks == 0].max() < 128 and numpy.median(pictures[made.masks > 0]) > 190
