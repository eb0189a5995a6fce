"""TensorFlow Datasets as a source, read without TensorFlow through `tfds.data_source`."""

from typing import Any

TFDS_PREFIX = "tfds:"


def open_tfds(source: str, tfds_dir: str) -> Any:
    """Open a prepared dataset for random access.

    Args:
        source: `tfds:NAME[/CONFIG][:SPLIT]`; SPLIT defaults to `train`.
        tfds_dir: where datasets are prepared; "" for the library's default.

    Returns:
        a sequence of dicts of feature values.

    Raises:
        ValueError: not prepared there, in a format that needs TensorFlow, or without that split.
    """
    import tensorflow_datasets as tfds

    name, _, split = source.removeprefix(TFDS_PREFIX).partition(":")
    split = split or "train"
    where = f" in `{tfds_dir}`" if tfds_dir else ""
    try:
        builder = tfds.builder(name, data_dir=tfds_dir or None, try_gcs=False)
    except Exception as error:  # the library has no common base class
        raise ValueError(
            f"`{source}`: not prepared{where}; run `tfds build {name} "
            "--file_format=array_record` on a machine with TensorFlow."
        ) from error
    try:
        return builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        splits = ", ".join(builder.info.splits)
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`{source}`: cannot be read{where} ({why}); it must be "
            "prepared with --file_format=array_record or parquet, "
            f"and SPLIT be one of: {splits or 'none prepared'}."
        ) from error


def tfds_captions(source: str, tfds_dir: str) -> list[str]:
    """Read the captions of a dataset: its feature `caption`, `captions` or `text`.

    Raises:
        ValueError: see `open_tfds`; or it has no such feature.
    """
    captions = []
    for example in open_tfds(source, tfds_dir):
        found = _caption_values(example)
        if found is None:
            raise ValueError(
                f"`{source}`: has no feature named caption, captions or text, but "
                f"{', '.join(map(str, example))}."
            )
        captions += [" ".join(text.split()) for text in found if text.strip()]
    return captions


def _caption_values(example: dict[str, Any]) -> list[str] | None:
    for name in ("captions", "caption", "text"):
        if name in example:
            value = example[name]
            if isinstance(value, dict):  # a sequence of {"text": ...}, as COCO has it
                value = value["text"]
            values = [value] if isinstance(value, str | bytes) else list(value)
            values = [v["text"] if isinstance(v, dict) else v for v in values]
            return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return None
