"""The tasks of the released Taskonomy and CelebA labels, with the published recipe's scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.tasks.spec import TaskSpec

# Released depth is uint16 in 1/512 m; 2^13 (16 m) and more counts as no reading.
_DEPTH: dict[str, Any] = {
    "kind": "dense_regression",
    "mean": (1500.0,),
    "scale": (1000.0,),
    "valid_below": 8192.0,
    "unit": "m",
    "unit_scale": 1 / 512,
    "display": "depth",
}

_SEMANTIC_CLASSES = (
    "uncertain",
    "background",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
)


def _uint16(name: str, mean: float, scale: float) -> TaskSpec:
    """Return a task whose stored values 0..65535 stand for a response from 0 to 1.

    What counts as positive is this project's choice, no value is published: more than one scale
    above the mean (and half a level, so that no stored value lies on the threshold). In released
    views that is 3 % of the pixels of edge_occlusion, 12 % of the keypoints', 18 % of edge_texture.
    """
    return TaskSpec(
        name,
        "dense_regression",
        mean=(mean,),
        scale=(scale,),
        unit_scale=1 / 65535,
        positive_above=(mean + scale + 0.5) / 65535,
    )


# The instance ids of segment_unsup2d and segment_unsup25d are numbered anew in every image: they
# are neither classes nor values, so no per-pixel loss fits them and they are left out.
TASKONOMY: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec("depth_zbuffer", **_DEPTH),
        TaskSpec("depth_euclidean", **_DEPTH),
        TaskSpec(
            "normal",
            "dense_regression",
            channels=3,
            mean=(127.5,),
            scale=(127.5,),
            unit_scale=1 / 127.5,
            unit_offset=-1.0,
            display="normal",
        ),
        TaskSpec(
            "principal_curvature",
            "dense_regression",
            channels=2,
            mean=(255 * 0.5175, 255 * 0.4987),
            scale=(255 * 0.1373, 255 * 0.0359),
            unit_scale=1 / 128,
            unit_offset=-127 / 128,
            display="signed",
        ),
        TaskSpec(
            "reshading",
            "dense_regression",
            mean=(255 * 0.4962,),
            scale=(255 * 0.2846,),
            unit_scale=1 / 255,
        ),
        _uint16("edge_texture", 718.0, 1070.0),
        _uint16("edge_occlusion", 56.0248, 239.1265),
        _uint16("keypoints2d", 50.0, 100.0),
        # No scale is published for this domain: a round one near the spread of released views.
        _uint16("keypoints3d", 2000.0, 5000.0),
        TaskSpec(
            "segment_semantic",
            "dense_classification",
            channels=len(_SEMANTIC_CLASSES),
            ignore_index=0,
            display="classes",
            classes=_SEMANTIC_CLASSES,
        ),
    )
}

_TASKONOMY5 = ("depth_zbuffer", "normal", "segment_semantic", "keypoints2d", "edge_texture")

# DMTG trains depth and normals with the published "rotate" loss.
_SHIFTED = frozenset({"depth_zbuffer", "normal"})

_CELEBA9 = (
    "5_o_Clock_Shadow",
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Goatee",
    "Mustache",
    "No_Beard",
    "Rosy_Cheeks",
    "Wearing_Hat",
)

_CELEBA40 = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)


def _attributes(names: tuple[str, ...]) -> tuple[TaskSpec, ...]:
    return tuple(TaskSpec(name, "binary", loss="cross_entropy") for name in names)


PRESETS: dict[str, tuple[TaskSpec, ...]] = {
    "taskonomy5": tuple(
        replace(TASKONOMY[name], loss="l1_shift" if name in _SHIFTED else "")
        for name in _TASKONOMY5
    ),
    "taskonomy": tuple(TASKONOMY.values()),
    "celeba9": _attributes(_CELEBA9),
    "celeba40": _attributes(_CELEBA40),
}
