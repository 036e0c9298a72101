"""Rendered rooms: geometry against independent closed forms, labels against the picture's geometry.

R rays; H, W picture sides.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest, check_shards
from data_pipelines.synthetic.attributes import attribute_fields, attributes
from data_pipelines.synthetic.labels import DENSE_LABELS, SEMANTIC_CLASSES, dense_labels
from data_pipelines.synthetic.raycast import (
    FACE_FLOOR,
    FIRST_SOLID,
    Hits,
    camera_rays,
    cast,
    in_shadow,
    solid_distance,
)
from data_pipelines.synthetic.rooms import write_rooms
from data_pipelines.synthetic.sample import RoomJob, make_sample, visible_scene
from data_pipelines.synthetic.scene import SHAPES, Camera, Scene, Solid
from data_pipelines.synthetic.shading import render

SIZE = 64
NUM_SMALL = 40


def solid_of(shape: str, yaw: float = 0.4) -> Solid:
    return Solid(shape, np.array([0.2, 0.9, 3.0]), 0.5, 0.5 if shape == "sphere" else 0.7, yaw,
                 "red", True)  # fmt: skip


def is_inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Membership of points [3, R] by the solids' definitions, without any ray."""
    x, y, z = points - solid.centre[:, None]
    if solid.shape == "sphere":
        return x * x + y * y + z * z < solid.radius**2
    level = np.abs(y) < solid.half_height
    if solid.shape == "cylinder":
        return level & (np.hypot(x, z) < solid.radius)
    if solid.shape == "cone":
        from_tip = solid.half_height - y
        return level & (np.hypot(x, z) < solid.radius * from_tip / (2 * solid.half_height))
    # A box turned by yaw: its two horizontal edges point along these directions.
    first = np.array([np.cos(solid.yaw), -np.sin(solid.yaw)])
    second = np.array([np.sin(solid.yaw), np.cos(solid.yaw)])
    across, along = first[0] * x + first[1] * z, second[0] * x + second[1] * z
    return level & (np.abs(across) < solid.radius) & (np.abs(along) < solid.radius)


def scene_with(*solids: Solid, size: int = SIZE) -> tuple[Scene, Hits]:
    scene, _ = visible_scene(np.random.default_rng(3), 32)
    camera = Camera(np.array([0.0, 1.3, 0.5]), yaw=0.05, pitch=-0.1, field_of_view=1.2)
    scene = replace(scene, solids=solids, camera=camera)
    return scene, cast(scene, size)


def labelled(scene: Scene, hits: Hits, size: int) -> dict[str, np.ndarray]:
    return dense_labels(scene, hits, render(scene, hits, size, np.random.default_rng(0)))


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, Hits]]:
    return [visible_scene(np.random.default_rng([11, i]), SIZE) for i in range(300)]


def test_camera_axes_are_right_down_forward() -> None:
    axes = Camera(np.zeros(3), yaw=0.3, pitch=0.2, field_of_view=1.0).axes()
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    right, down, forward = axes
    assert right[0] > 0.9
    assert down[1] < -0.9  # the world's y points up
    assert forward[2] > 0.9
    assert forward[1] == pytest.approx(np.sin(0.2))  # looks up
    assert forward[0] > 0  # a positive yaw turns to the right


def test_rays_span_the_field_of_view() -> None:
    camera = Camera(np.zeros(3), yaw=0.0, pitch=0.0, field_of_view=np.radians(90))
    rays = camera_rays(camera, 4).reshape(3, 4, 4)
    np.testing.assert_allclose(rays[0, 0], [-0.75, -0.25, 0.25, 0.75], atol=1e-12)
    np.testing.assert_allclose(rays[1, :, 0], [0.75, 0.25, -0.25, -0.75], atol=1e-12)
    np.testing.assert_allclose(rays[2], 1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_hit_is_where_marching_enters_the_solid(shape: str) -> None:
    solid = solid_of(shape)
    rng = np.random.default_rng(5)
    origins = np.repeat(rng.uniform([-1, 0.2, 0], [1, 2.4, 1.5], (40, 3)), 50, axis=0).T
    targets = solid.centre[:, None] + rng.normal(0, 0.5, origins.shape)
    directions = targets - origins
    actual = solid_distance(solid, origins, directions)
    steps = np.linspace(0, 3, 1501)
    inside = np.stack([is_inside(solid, origins + t * directions) for t in steps])
    entered = inside.any(axis=0)
    first = np.where(entered, steps[inside.argmax(axis=0)], np.inf)
    assert 200 < entered.sum() < 1900
    assert np.all(np.isfinite(actual[entered]))
    late = first[entered] - actual[entered]
    assert late.min() > -1e-9
    # Marching overlooks a chord shorter than its step, and only that.
    assert np.mean(late < steps[1] + 1e-9) > 0.98
    grazed = np.isfinite(actual) & ~entered
    assert grazed.mean() < 0.02


def test_the_sphere_outline_is_the_tangent_cone() -> None:
    sphere = solid_of("sphere")
    scene, hits = scene_with(sphere, size=128)
    offset = sphere.centre - scene.camera.position
    distance = np.linalg.norm(offset)
    rays = hits.rays / np.linalg.norm(hits.rays, axis=0)
    expected = offset @ rays / distance > np.cos(np.arcsin(sphere.radius / distance))
    assert expected.sum() > 300
    np.testing.assert_array_equal(hits.surface == FIRST_SOLID, expected)


def test_both_depths_agree_with_the_camera_rays(scenes: list[tuple[Scene, Hits]]) -> None:
    half = np.tan(scenes[0][0].camera.field_of_view / 2)
    centres = (np.arange(SIZE) - (SIZE - 1) / 2) / (SIZE / 2) * half
    length = np.sqrt(1 + centres[:, None] ** 2 + centres[None, :] ** 2)  # [H, W]
    labels = labelled(*scenes[0], SIZE)
    z, euclid = labels["depth_zbuffer"].astype(float), labels["depth_euclidean"].astype(float)
    read = z < 65535
    np.testing.assert_allclose(euclid[read], (z * length)[read], atol=1.2)
    assert 0.5 * 512 < z[read].min() < z[read].max() < 12 * 512


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_match_finite_differences_of_the_unprojected_depth(shape: str) -> None:
    size = 256
    scene, hits = scene_with(solid_of(shape), size=size)
    normal = labelled(scene, hits, size)["normal"] / 127.5 - 1  # [H, W, 3]
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)  # eight bits are not quite unit
    centres = (np.arange(size) - (size - 1) / 2) / (size / 2) * np.tan(0.6)
    z = hits.depth.reshape(size, size)
    points = np.stack([z * centres[None, :], z * centres[:, None], z], axis=-1)
    across = (points[1:-1, 2:] - points[1:-1, :-2]) / 2
    down = (points[2:, 1:-1] - points[:-2, 1:-1]) / 2
    expected = np.cross(down, across)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    normal = normal[1:-1, 1:-1]
    assert np.all((normal * points[1:-1, 1:-1]).sum(axis=-1) < 0.05)  # towards the camera
    cosine = (expected * normal).sum(axis=-1)
    solid = hits.surface.reshape(size, size)[1:-1, 1:-1] == FIRST_SOLID
    # Differences across an edge mean nothing; edges cover a small part of either region.
    assert solid.sum() > 2000
    assert np.mean(cosine[solid] > 0.998) > 0.85
    assert np.mean(cosine[~solid] > 0.998) > 0.93


def test_normals_of_the_floor_point_up_in_the_camera_frame() -> None:
    scene, hits = scene_with(solid_of("box"))
    normal = labelled(scene, hits, SIZE)["normal"].reshape(-1, 3)[hits.surface == FACE_FLOOR]
    # Down is the second axis; a camera that looks down by 0.1 sees the floor's normal lean to it.
    expected = 127.5 * (1 + np.array([0, -np.cos(0.1), -np.sin(0.1)]))
    assert np.abs(normal - expected).max() <= 0.51


@pytest.mark.parametrize("shape", ["cylinder", "cone", "sphere"])
def test_curvature_is_the_turning_of_the_normal(shape: str) -> None:
    size = 256
    _, hits = scene_with(solid_of(shape), size=size)
    grid = (3, size, size)
    points, normals = hits.points.reshape(grid), hits.normals.reshape(grid)
    surface = hits.surface.reshape(size, size)
    rows, columns = np.nonzero(surface[3:-3, 3:-3] == FIRST_SOLID)
    actual, expected = [], []
    for r, c in zip(rows[::23] + 3, columns[::23] + 3, strict=True):
        if np.any(surface[r - 3 : r + 4, c - 3 : c + 4] != FIRST_SOLID):
            continue
        moved = np.stack([points[:, r, c + 1] - points[:, r, c - 1],
                          points[:, r + 1, c] - points[:, r - 1, c]])  # fmt: skip
        turned = np.stack([normals[:, r, c + 1] - normals[:, r, c - 1],
                           normals[:, r + 1, c] - normals[:, r - 1, c]])  # fmt: skip
        shape_operator = np.linalg.pinv(moved, rcond=1e-6) @ turned
        eigenvalues = np.sort(np.linalg.eigvals(shape_operator).real)
        actual.append((eigenvalues[-1], eigenvalues[-2] if shape == "sphere" else 0.0))
        expected.append(hits.curvature[:, r * size + c])
    error = np.abs(np.array(actual) - np.array(expected))
    assert len(error) > 40
    assert np.median(error[:, 0]) < 0.02
    assert np.array(expected)[:, 0].min() >= 0
    if shape == "sphere":
        np.testing.assert_allclose(expected, 2.0)  # radius 0.5 m
        assert np.median(error[:, 1]) < 0.02
    else:
        assert np.abs(np.array(expected)[:, 1]).max() == 0


def test_curvature_label_is_zero_at_127_on_planes() -> None:
    scene, hits = scene_with(solid_of("box"), replace(solid_of("sphere"),
                             centre=np.array([-1.0, 0.9, 3.5])))  # fmt: skip
    label = labelled(scene, hits, SIZE)["principal_curvature"].reshape(-1, 3)
    sphere = hits.surface == FIRST_SOLID + 1
    assert sphere.sum() > 20
    assert set(map(tuple, label[~sphere])) == {(127, 127, 0)}
    assert set(map(tuple, label[sphere])) == {(207, 207, 0)}  # 127 + 40 levels x 2 per metre


def test_shadow_is_where_the_way_to_the_lamp_enters_a_solid() -> None:
    scene, hits = scene_with(solid_of("cylinder"))
    shadow = in_shadow(scene, hits.points, hits.normals)
    off_solid = hits.surface < FIRST_SOLID
    offsets = scene.lamp.position[:, None] - hits.points
    marched = np.zeros(shadow.shape, dtype=bool)
    for t in np.linspace(0.001, 0.999, 600):
        marched |= is_inside(scene.solids[0], hits.points + t * offsets)
    assert marched[off_solid].sum() > 20
    assert np.mean(shadow[off_solid] == marched[off_solid]) > 0.995


def test_occlusion_is_the_gap_across_contours_and_zero_elsewhere() -> None:
    scene, hits = scene_with(solid_of("sphere"))
    edge = labelled(scene, hits, SIZE)["edge_occlusion"].astype(float)
    solid = hits.surface.reshape(SIZE, SIZE) == FIRST_SOLID
    depth = hits.depth.reshape(SIZE, SIZE)
    expected = np.zeros_like(depth)
    for r in range(SIZE):
        for c in range(SIZE):
            for i, j in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if 0 <= i < SIZE and 0 <= j < SIZE and solid[i, j] != solid[r, c]:
                    expected[r, c] = max(expected[r, c], abs(depth[r, c] - depth[i, j]))
    assert (expected > 0).sum() > 50
    np.testing.assert_allclose(edge, 512 * expected, atol=0.51)


def test_filters_answer_to_edges_and_corners_of_the_picture() -> None:
    scene, hits = scene_with(solid_of("box"))
    picture = np.full((SIZE, SIZE, 3), 60, dtype=np.uint8)
    picture[20:44, 20:44] = 200
    labels = dense_labels(scene, hits, picture)
    edges, corners = labels["edge_texture"], labels["keypoints2d"]
    assert edges[32, 20] > 1000
    assert edges[32, 32] == edges[5, 5] == 0
    assert corners[20, 20] > 200
    assert corners[32, 20] == 0  # a straight edge is no corner


def test_reshading_is_brightest_where_the_surface_faces_the_camera() -> None:
    scene, hits = scene_with(solid_of("sphere"), size=128)
    label = labelled(scene, hits, 128)["reshading"]
    assert np.all(label == label[..., :1])
    grey = label[..., 0].ravel()[hits.surface == FIRST_SOLID]
    rays = hits.rays / np.linalg.norm(hits.rays, axis=0)
    facing = -(rays * hits.normals).sum(axis=0)[hits.surface == FIRST_SOLID]
    assert np.corrcoef(grey, facing)[0, 1] > 0.99


def test_semantic_ids_name_what_is_there(scenes: list[tuple[Scene, Hits]]) -> None:
    assert len(SEMANTIC_CLASSES) == len(set(SEMANTIC_CLASSES)) == 18
    seen: set[int] = set()
    for scene, hits in scenes[:60]:
        labels = labelled(scene, hits, SIZE)
        ids = labels["segment_semantic"]
        present = {SEMANTIC_CLASSES[i] for i in np.unique(ids)}
        seen |= set(np.unique(ids).tolist())
        expected = {s.shape for s in scene.solids}
        assert present & set(SHAPES) == expected
        assert ("window" in present) == (scene.room.window is not None)
        np.testing.assert_array_equal(
            labels["depth_zbuffer"] == 65535, ids == SEMANTIC_CLASSES.index("window")
        )
        assert (ids == 0).mean() < 0.05
    assert seen == set(range(9))


def test_attributes_are_true_of_the_labels(scenes: list[tuple[Scene, Hits]]) -> None:
    for scene, hits in scenes[:60]:
        values = attributes(scene, hits)
        ids = hits.surface
        labels = labelled(scene, hits, SIZE)
        semantic = labels["segment_semantic"]
        for shape in SHAPES:
            assert values[f"has_{shape}"] == (SEMANTIC_CLASSES.index(shape) in semantic)
        assert values["floor_share"] == pytest.approx((semantic == 2).mean(), abs=1e-6)
        assert values["ceiling_share"] == pytest.approx((semantic == 3).mean(), abs=1e-6)
        z = labels["depth_zbuffer"]
        assert values["mean_depth"] == pytest.approx(z[z < 65535].mean() / 512, abs=2e-3)
        assert values["num_solids"] + 1 == len(np.unique(ids[ids >= FIRST_SOLID]))
        assert values["has_three_solids"] == (values["num_solids"] >= 2)
        lamp = scene.camera.axes() @ (scene.lamp.position - scene.camera.position)
        assert values["light_from_left"] == (lamp[0] < 0)
        if len(scene.solids) == 1:
            columns = np.nonzero((ids >= FIRST_SOLID).reshape(SIZE, SIZE))[1]
            assert values["nearest_solid_left"] == (columns.mean() < (SIZE - 1) / 2)
            assert SHAPES[values["largest_shape"]] == scene.solids[0].shape


def test_light_side_shows_in_the_picture(scenes: list[tuple[Scene, Hits]]) -> None:
    agree = []
    for scene, hits in scenes[:150]:
        picture = render(scene, hits, SIZE, np.random.default_rng(0)).mean(axis=2)
        brighter_left = picture[:, : SIZE // 2].mean() > picture[:, SIZE // 2 :].mean()
        agree.append(brighter_left == (attributes(scene, hits)["light_from_left"] == 1))
    assert np.mean(agree) > 0.75


def test_classes_are_balanced(scenes: list[tuple[Scene, Hits]]) -> None:
    values = [attributes(*pair) for pair in scenes]
    fields = attribute_fields()
    assert set(values[0]) == set(fields)
    assert len(fields) >= 14
    for name, field in fields.items():
        column = np.array([v[name] for v in values])
        if field.kind == "binary":
            assert 0.3 < column.mean() < 0.7, name
        elif field.kind == "multiclass":
            shares = np.bincount(column, minlength=len(field.classes)) / len(column)
            assert shares.min() > 0.4 / len(field.classes), name
        else:
            assert column.std() > 0.05 * np.ptp(column) > 0, name


def test_sided_fields_know_about_mirrors(tmp_path: Path) -> None:
    fields = write_rooms(tmp_path, 2, 32, 0, val_fraction=0.5, progress=False).fields
    assert {n for n, f in fields.items() if f.on_flip == "forbid"} == {
        "light_from_left", "nearest_solid_left",
    }  # fmt: skip
    assert {n for n, f in fields.items() if f.on_flip == "negate_x"} == {"normal"}


def read(root: Path) -> dict[str, bytes]:
    """Every member of every shard by name."""
    members: dict[str, bytes] = {}
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members |= {info.name: tar.extractfile(info).read() for info in tar}
    return members


def hashes(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    write_rooms(root, NUM_SMALL, 32, 7, samples_per_shard=15, progress=False)
    return root


def test_files_depend_on_the_seed_and_not_on_the_workers(small: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    write_rooms(again, NUM_SMALL, 32, 7, workers=2, samples_per_shard=15, progress=False)
    write_rooms(other, NUM_SMALL, 32, 8, samples_per_shard=15, progress=False)
    assert hashes(again) == hashes(small)
    assert not set(hashes(other).values()) & set(hashes(small).values())


def test_a_sample_does_not_depend_on_how_many_there_are(small: Path) -> None:
    sample = make_sample(RoomJob(7, "train", 20, 32, 0.0))
    members = read(small)
    for name, data in sample.members.items():
        assert members[f"{sample.key}.{name}"] == data


def test_portable_shards_hold_the_same_labels_as_png(small: Path, tmp_path: Path) -> None:
    manifest = write_rooms(tmp_path, NUM_SMALL, 32, 7, portable=True, progress=False)
    default = {name.partition(".")[0::2]: data for name, data in read(small).items()}
    for name, data in read(tmp_path).items():
        key, _, member = name.partition(".")
        if member == "rgb.png":
            lossy = decode("rgb.jpg", default[key, "rgb.jpg"]).astype(int)
            assert np.abs(decode(member, data) - lossy).mean() < 3
        elif member.endswith(".png"):
            planes = decode("a.planes", default[key, member.replace(".png", ".planes")])
            np.testing.assert_array_equal(decode(member, data), planes)
    assert {f.member.rpartition(".")[2] for f in manifest.fields.values()} == {"png", "json"}


def test_splits_hold_different_pictures(small: Path) -> None:
    pictures = [data for name, data in read(small).items() if name.endswith(".rgb.jpg")]
    assert len(set(pictures)) == len(pictures) == NUM_SMALL


def test_manifest_counts_and_statistics(small: Path) -> None:
    manifest = Manifest.load(small)
    train, val = manifest.split("train"), manifest.split("val")
    check_shards(small, train)
    check_shards(small, val)
    assert [s.samples for s in train.shards] == [15, 15, 4]
    assert val.num_samples == 6
    assert set(manifest.fields) == {"rgb", *DENSE_LABELS, *attribute_fields()}
    assert set(train.labelled) == set(manifest.fields)
    assert set(train.labelled.values()) == {34}
    records = [
        decode("a.json", data)
        for name, data in read(small).items()
        if name.startswith("train") and name.endswith(".json")
    ]
    pitches = [record["camera_pitch"] for record in records]
    assert manifest.fields["camera_pitch"].mean == pytest.approx(np.mean(pitches))
    assert manifest.fields["camera_pitch"].std == pytest.approx(np.std(pitches))


def test_stored_pictures_have_the_fields_shapes_and_types(small: Path) -> None:
    manifest = Manifest.load(small)
    members = read(small)
    deep = {"depth_zbuffer", "depth_euclidean", "edge_occlusion", "edge_texture", "keypoints2d"}
    for name in ("rgb", *DENSE_LABELS):
        field = manifest.fields[name]
        array = decode(field.member, members[f"val-0000003.{field.member}"])
        assert array.shape == (field.channels, 32, 32)
        assert array.dtype == (np.uint16 if name in deep else np.uint8)
    assert len(manifest.fields["segment_semantic"].classes) == 18


def test_missing_drops_each_label_at_its_rate_and_leaves_the_rest_alone(
    small: Path, tmp_path: Path
) -> None:
    manifest = write_rooms(tmp_path, NUM_SMALL, 32, 7, missing=0.3, progress=False)
    full, thinned = read(small), read(tmp_path)
    for name, data in thinned.items():
        if name.endswith(".json"):
            kept, everything = decode(name, data), decode(name, full[name])
            assert kept == {k: everything[k] for k in kept}
        else:
            assert data == full[name]
    splits = manifest.splits.values()
    labels = [n for n in manifest.fields if n != "rgb"]
    assert sum(s.labelled["rgb"] for s in splits) == NUM_SMALL
    counts = {n: sum(s.labelled[n] for s in splits) for n in labels}
    assert sum(counts.values()) / (NUM_SMALL * len(labels)) == pytest.approx(0.7, abs=0.05)
    assert counts["normal"] == sum(name.endswith(".normal.planes") for name in thinned)
    # Independent labels: the same ones are not always lost together.
    lost = [
        {n for n in DENSE_LABELS if f"{k}.{n}.planes" not in thinned}
        for k in (name[: -len(".rgb.jpg")] for name in thinned if name.endswith(".rgb.jpg"))
    ]
    assert len(set(map(frozenset, lost))) > NUM_SMALL / 2


def test_all_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        write_rooms(tmp_path, 0, 16, -1, missing=1.0, val_fraction=0.7, workers=0)
    for part in ("samples is 0, must be at least 1", "size is 16, must be at least 32 pixels",
                 "seed is -1, must be 0 or more", "missing is 1.0, must be in [0, 1)",
                 "val_fraction is 0.7, must be in [0, 0.5]",
                 "workers is 0, must be at least 1"):  # fmt: skip
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_data_set_is_not_overwritten(small: Path) -> None:
    before = hashes(small)
    with pytest.raises(DataError, match=r"manifest\.json: a data set is already here"):
        write_rooms(small, 4, 32, 0, progress=False)
    assert hashes(small) == before


def test_progress_can_be_silenced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rooms(tmp_path / "quiet", 2, 32, 0, progress=False)
    assert capsys.readouterr().err == ""
    write_rooms(tmp_path / "loud", 2, 32, 0)
    assert "2/2" in capsys.readouterr().err
