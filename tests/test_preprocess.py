"""How photos are prepared: every field, file and mode against the library whose files they are."""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from factories import logged
from make_golden import GOLDEN_PHOTOS, OPENCLIP_CONFIGS, SIDE_PHOTOS, prepared_by_open_clip
from pictures import pictures
from reference import hf, open_clip

from jaxdefense.convert.preprocess import to_hf, to_openclip
from jaxdefense.data.images import ImageProcessor, read_processor

SIDE = SIDE_PHOTOS
CROP = {"height": SIDE, "width": SIDE}
CLIP, SIGLIP = "CLIPImageProcessor", "SiglipImageProcessor"


def write(path: Path, name: str, value: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value))
    return path


def clip_directory(path: Path, fields: Any, model_type: str = "clip") -> Path:
    """A directory that transformers finds a processor in."""
    write(path, "config.json", {"model_type": model_type})
    return write(path, "preprocessor_config.json", fields)


def theirs(path: Path) -> Any:
    """The processor that transformers makes of a directory, its Pillow version."""
    return hf.AutoImageProcessor.from_pretrained(path, backend="pil")


def assert_equal_to_transformers(path: Path, processor: ImageProcessor, only: str = "") -> None:
    reference, num = theirs(path), 0
    for name, picture in pictures().items():
        if name.startswith(only):
            ours = processor.normalise(jnp.asarray(processor(picture)[None]))[0]
            wanted = reference(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
            atol = 1e-5 * max(1, 255 / processor.scale)
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=atol, err_msg=name)
            num += 1
    assert num > 3


# transformers

READ = {
    "as CLIP's": {"size": SIDE, "crop_size": SIDE},
    "as OpenAI wrote it": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_processor_type": None,
        **{"crop_size": SIDE, "size": SIDE, "resample": 3},
    },
    "larger": {"size": {"shortest_edge": 14}, "crop_size": CROP},
    "smaller": {"size": {"shortest_edge": 6}, "crop_size": CROP},
    "squashed, then cut": {"size": {"height": 12, "width": 15}, "crop_size": [SIDE, SIDE]},
    "squashed, a list": {"size": [SIDE, SIDE], "do_center_crop": False},
    "squashed, a number": {"size": SIDE, "default_to_square": True, "do_center_crop": None},
    "cut alone": {"do_resize": False, "crop_size": CROP},
    "bilinear": {"size": SIDE, "crop_size": SIDE, "resample": 2},
    "nearest": {"size": SIDE, "crop_size": SIDE, "resample": 0},
    "Lanczos": {"size": SIDE, "crop_size": SIDE, "resample": 1},
    "box": {"size": SIDE, "crop_size": SIDE, "resample": 4},
    "not rescaled": {"size": SIDE, "crop_size": SIDE, "do_rescale": False},
    "rescaled by 1/127": {"size": SIDE, "crop_size": SIDE, "rescale_factor": 1 / 127},
    "not normalised": {"size": SIDE, "crop_size": SIDE, "do_normalize": False},
    "one mean": {"size": SIDE, "crop_size": SIDE, "image_mean": 0.5, "image_std": [1, 2, 0.25]},
    "fast": {"size": SIDE, "crop_size": SIDE, "image_processor_type": "CLIPImageProcessorFast"},
    "a SigLIP's": {"image_processor_type": SIGLIP, "size": CROP},
    "a SigLIP's, cut": {
        "image_processor_type": SIGLIP,
        **{"size": {"height": 12, "width": 12}, "do_center_crop": True, "crop_size": CROP},
    },
    "with fields of no effect": {"size": SIDE, "crop_size": SIDE, "processor_class": "X", "y": 1},
}


@pytest.mark.parametrize("name", READ)
def test_fields_are_read_as_transformers_reads_them(tmp_path, name):
    path = clip_directory(tmp_path, {"image_processor_type": CLIP} | READ[name])
    few = "" if name in ("as CLIP's", "squashed, then cut", "cut alone") else "RGB"
    assert_equal_to_transformers(path, read_processor(path, SIDE), few)


@pytest.mark.parametrize("value", [False, None])
def test_without_conversion_colour_photos_are_as_in_transformers(tmp_path, value):
    fields = {"size": SIDE, "crop_size": SIDE, "do_convert_rgb": value}
    path = clip_directory(tmp_path, {"image_processor_type": CLIP} | fields)
    picture, processor, reference = (
        pictures()["RGB 23x17"],
        read_processor(path, SIDE),
        theirs(path),
    )
    wanted = reference(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = processor.normalise(jnp.asarray(processor(picture)[None]))[0]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError):
        reference(pictures()["RGBA 23x17"], return_tensors="np")


def test_absent_fields_are_transformers_own(tmp_path):
    for model_type, siglip in (("clip", False), ("siglip", True)):
        path = clip_directory(tmp_path / model_type, {}, model_type)
        found, reference = read_processor(path, 224, siglip), theirs(path)
        assert found.mean == tuple(reference.image_mean) == ((0.5,) * 3 if siglip else found.mean)
        assert found.std == tuple(reference.image_std)
        assert_equal_to_transformers(path, found, "RGB ")
    with pytest.raises(ValueError, match=r"`crop_size` \(=224x224, as it is where the field is ab"):
        read_processor(tmp_path / "clip", SIDE)


OTHER = {"image_processor_type": CLIP, "size": 14, "crop_size": SIDE, "resample": 2}
FIELDS = {"image_processor_type": CLIP, "size": 11, "crop_size": SIDE, "image_mean": 0.25}


@pytest.mark.parametrize("outer", [None, OTHER])
@pytest.mark.parametrize("nested", [FIELDS, None, "absent"])
def test_file_that_holds_is_the_one_transformers_takes(tmp_path, outer, nested):
    write(tmp_path, "config.json", {"model_type": "clip"})
    outside = {} if nested == "absent" else {"image_processor": nested}
    write(tmp_path, "processor_config.json", {"processor_class": "CLIPProcessor", **outside})
    if outer:
        write(tmp_path, "preprocessor_config.json", outer)
    said: list[str] = []
    found = read_processor(tmp_path, SIDE, note=said.append)
    if outer or nested == FIELDS:
        assert_equal_to_transformers(tmp_path, found, "RGB")
        assert found.resize == (11 if nested == FIELDS else 14) and not said
    else:
        with pytest.raises(OSError):
            theirs(tmp_path)
        assert found == ImageProcessor(SIDE, SIDE) and len(said) == 1


def test_processor_that_transformers_saved_is_read(tmp_path):
    write(tmp_path, "config.json", {"model_type": "clip"})
    write(tmp_path / "fields", "preprocessor_config.json", FIELDS)
    write(tmp_path / "fields", "config.json", {"model_type": "clip"})
    saved = json.loads(theirs(tmp_path / "fields").to_json_string())
    write(tmp_path, "processor_config.json", {"image_processor": saved})
    assert_equal_to_transformers(tmp_path, read_processor(tmp_path, SIDE), "RGB")


def test_without_a_file_one_line_says_what_holds(tmp_path):
    with logged() as said:
        assert read_processor(tmp_path, SIDE) == ImageProcessor(SIDE, SIDE)
    (line,) = said.getvalue().splitlines()
    assert line == (
        f"`{tmp_path}` has neither preprocessor_config.json nor processor_config.json: photos are "
        "prepared as CLIP's default says: shorter side to 9 (bicubic), crop 9, mean (0.481, 0.458, "
        "0.408), std (0.269, 0.261, 0.276)"
    )


REFUSED = {
    "another family": ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type"),
    "another's old name": (
        {"image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"},
        "image_processor_type",
    ),
    "the longest side": ({"size": {"longest_edge": SIDE}}, "size"),
    "both sides": ({"size": {"shortest_edge": SIDE, "longest_edge": 20}}, "size"),
    "no size": ({"size": None}, "size"),
    "a size of words": ({"size": "9"}, "size"),
    "size 0": ({"size": 0}, "size"),
    "another crop": ({"crop_size": {"height": SIDE, "width": 10}}, "crop_size"),
    "a crop by shorter side": ({"crop_size": {"shortest_edge": SIDE}}, "crop_size"),
    "no crop": ({"do_center_crop": False}, "size"),
    "another square": ({"do_center_crop": False, "size": [8, 8]}, "size"),
    "padding": ({"do_pad": True, "pad_size": CROP}, "do_pad"),
    "old square": ({"use_square_size": True}, "use_square_size"),
    "no filter": ({"resample": None}, "resample"),
    "an unknown filter": ({"resample": 60}, "resample"),
    "a filter's name": ({"resample": "bicubic"}, "resample"),
    "no factor": ({"rescale_factor": None}, "rescale_factor"),
    "factor 0": ({"rescale_factor": 0}, "rescale_factor"),
    "no mean": ({"image_mean": None}, "image_mean"),
    "four means": ({"image_mean": [0.5] * 4}, "image_mean"),
    "deviation 0": ({"image_std": [1, 0, 1]}, "image_std"),
    "NaN": ({"image_mean": float("nan")}, "image_mean"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path, name):
    change, field = REFUSED[name]
    usual = {"image_processor_type": CLIP, "size": SIDE, "crop_size": SIDE}
    path = clip_directory(tmp_path, usual | change)
    with pytest.raises(ValueError, match=rf"preprocessor_config.json`: `{field}` \(=") as info:
        read_processor(path, SIDE)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("value", [[], "x", 3])
def test_section_that_is_none_is_refused(tmp_path, value):
    write(tmp_path, "processor_config.json", {"image_processor": value})
    with pytest.raises(ValueError, match=r"processor_config.json`: `image_processor` must be"):
        read_processor(tmp_path, SIDE)


@pytest.mark.torch("torchvision")
def test_torchvisions_version_is_one_level_off_at_most(tmp_path):
    path = clip_directory(tmp_path, {"image_processor_type": CLIP, "size": 11, "crop_size": SIDE})
    auto = hf.AutoImageProcessor
    reference, processor = (
        auto.from_pretrained(path, backend="torchvision"),
        read_processor(path, 9),
    )
    for name, picture in pictures().items():
        out = reference(picture, do_rescale=False, do_normalize=False)["pixel_values"][0]
        diff = np.abs(np.asarray(out).transpose(1, 2, 0) - processor(picture).astype(int))
        assert diff.max() <= 1 and diff.mean() < 0.05, name


# Of a call, or without effect where no photo is padded.
HARMLESS = {
    *("data_format", "input_data_format", "device", "return_tensors", "disable_grouping"),
    *("image_seq_length", "pad_size"),
}


def test_no_field_of_the_libraries_is_new():
    known = {
        key for fields in (*READ.values(), *(x for x, _ in REFUSED.values())) for key in fields
    }
    fields = set(hf.processing_utils.ImagesKwargs.__annotations__)
    assert fields - HARMLESS - {"do_convert_rgb"} <= known


@pytest.mark.torch("open_clip")
def test_no_field_of_open_clips_is_new():
    fields = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    assert set(open_clip.transform.PreprocessCfg.__dataclass_fields__) == fields


# OpenCLIP


def openclip_directory(path: Path, fields: Any) -> Path:
    return write(path, "open_clip_config.json", {"model_cfg": {}, "preprocess_cfg": fields})


@pytest.mark.parametrize("name", OPENCLIP_CONFIGS)
def test_photos_are_prepared_as_open_clip_did(tmp_path, name):
    """Pixels made by tests/make_golden.py."""
    path = openclip_directory(tmp_path, OPENCLIP_CONFIGS[name])
    processor = read_processor(path, SIDE)
    with np.load(GOLDEN_PHOTOS) as golden:
        for key, picture in pictures().items():
            wanted = golden[f"{name}/{key}"]
            np.testing.assert_array_equal(processor(picture), wanted, err_msg=key)


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize("name", OPENCLIP_CONFIGS)
def test_photos_are_prepared_as_open_clip_does_today(tmp_path, name):
    processor = read_processor(openclip_directory(tmp_path, OPENCLIP_CONFIGS[name]), SIDE)
    for key, wanted in prepared_by_open_clip(OPENCLIP_CONFIGS[name]).items():
        np.testing.assert_array_equal(processor(pictures()[key]), wanted, err_msg=key)


@pytest.mark.torch("open_clip")
@pytest.mark.parametrize(
    "fields",
    [{"mean": 0.5, "std": [0.2, 0.3, 0.4]}, {"mean": 0, "std": None}, {"mean": [0, 0, 1]}, None],
)
def test_statistics_are_open_clips(tmp_path, fields):
    base = open_clip.transform.PreprocessCfg()
    merged = open_clip.transform.merge_preprocess_dict(base, (fields or {}) | {"size": SIDE})
    cfg = open_clip.transform.PreprocessCfg(**merged)
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)
    processor = read_processor(openclip_directory(tmp_path, fields), SIDE)
    picture = pictures()["RGB 23x17"]
    ours = processor.normalise(jnp.asarray(processor(picture)[None]))[0]
    np.testing.assert_allclose(ours, transform(picture).numpy().transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(
    "field, value",
    [
        ("resize_mode", "long"),
        ("interpolation", "lanczos"),
        ("mode", "L"),
        ("fill_color", 300),
        ("std", [1, 0, 1]),
        ("mean", [1, 2]),
    ],
)
def test_field_that_open_clip_refuses_is_refused_by_name(tmp_path, field, value):
    path = openclip_directory(tmp_path, {"resize_mode": "longest", field: value})
    with pytest.raises(
        ValueError, match=rf"open_clip_config.json`: `.*{field}` \(={re.escape(repr(value))}\)"
    ):
        read_processor(path, SIDE)


def test_of_two_layouts_that_with_weights_holds(tmp_path):
    clip_directory(tmp_path, {"size": 14, "crop_size": SIDE})
    openclip_directory(tmp_path, {"resize_mode": "squash"})
    assert read_processor(tmp_path, SIDE).library == "transformers"
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    found = read_processor(tmp_path, SIDE)
    assert found.library == "open_clip" and found.resize == (SIDE, SIDE)


# From one layout to the other


@pytest.mark.parametrize("fields", [{}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}])
def test_settings_come_back_from_the_other_layout(tmp_path, fields):
    first = read_processor(openclip_directory(tmp_path / "a", fields | {"mean": 0.25}), SIDE)
    between = clip_directory(tmp_path / "b", to_hf(first))
    second = read_processor(between, SIDE)
    assert second.library == "transformers" and second.resize == first.resize
    assert_equal_to_transformers(between, second, "RGB")
    again = read_processor(openclip_directory(tmp_path / "c", to_openclip(second)), SIDE)
    assert again == first


@pytest.mark.parametrize("name", READ)
def test_fields_that_open_clip_cannot_say_are_refused(tmp_path, name):
    """What it can say comes back the same."""
    path = clip_directory(tmp_path / "a", {"image_processor_type": CLIP} | READ[name])
    found = read_processor(path, SIDE)
    plain = found.resize in (SIDE, (SIDE, SIDE)) and found.resample in (2, 3)
    if not plain or found.scale != 255:
        with pytest.raises(ValueError, match="OpenCLIP cannot prepare photos so: "):
            to_openclip(found)
        return
    other = read_processor(openclip_directory(tmp_path / "b", to_openclip(found)), SIDE)
    assert to_hf(other) == to_hf(found)


def test_longest_is_refused_where_transformers_cannot_say_it(tmp_path):
    found = read_processor(openclip_directory(tmp_path, {"resize_mode": "longest"}), SIDE)
    with pytest.raises(ValueError, match="'longest'"):
        to_hf(found)
