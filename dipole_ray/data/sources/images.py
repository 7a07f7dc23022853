"""Images in anybody's data: which arrays are some, which only look like it, and how encoded ones become arrays.

Images are uint8 of height x width x channels, wherever they come from, and are never made floats. N rows.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dipole_ray.columns import Column, Schema, is_channels_first
from dipole_ray.data.sources.npz import check_expansion, compressible
from dipole_ray.data.sources.reading import Arrays, to_float
from dipole_ray.errors import DatasetError

MAX_PIXELS = 1 << 24  # of one picture; more declares a bomb, not an observation
_SAMPLE = 256  # numbers of an image by which it is told from others
_FORMATS = ("PNG", "JPEG", "WEBP")  # others, such as EPS, would start programs
_AS_THEY_ARE = ("L", "RGB", "RGBA")  # pillow's modes with 1, 3 and 4 channels of 8 bits
_CONVERTED = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}

Bad = Callable[[str, str], DatasetError]
"""Returns the error of an array or a column: of what was found there, and what to do."""


def column_of(dtype: np.dtype, shape: tuple[int, ...], like: Schema | None, bad: Bad) -> Column:
    """Return what observations of a type and a shape, (N, ...), are stored as; raise what `bad` returns else.

    `like` says what an environment observes, where somebody named one.
    """
    one = shape[1:]
    if len(one) < 2:
        return Column((math.prod(one),))
    what, turned = f"has shape {shape} of {dtype}", (*one[1:], one[0])
    if len(one) == 3 and (is_channels_first(one) or (turned in _images_of(like) and one not in _images_of(like))):
        remedy = f"save images.transpose(0, 2, 3, 1), of shape {(shape[0], *turned)}"
        raise bad(f"{what}, channels first, and images are height x width x channels here", remedy)
    if len(one) == 3 and dtype != np.uint8:
        scaled = "np.rint(255 * images).astype(np.uint8) where they lie in 0 to 1, else images.astype(np.uint8)"
        raise bad(f"{what}, and images are uint8 from 0 to 255", f"save {scaled}, or flatten it if it is no image")
    if len(one) != 3:
        remedy = "flatten it, or save images[..., None] of one channel and stacks of frames with their channels last"
        raise bad(f"{what}; expected (rows, dim), or images (rows, height, width, channels)", remedy)
    return Column(one, "uint8")


def _images_of(schema: Schema | None) -> list[tuple[int, ...]]:
    return [] if schema is None else [column.shape for column in schema.observed.values() if column.is_image]


def are_images(values: np.ndarray) -> bool:
    """Return whether rows, (N, ...), are images."""
    return values.dtype == np.uint8 and values.ndim == 4


def as_recorded(values: np.ndarray) -> np.ndarray:
    """Return images as they are, and numbers as (N, O) floats, see `to_float`."""
    return values if are_images(values) else to_float(values).reshape(len(values), -1)


def schema_of_parts(parts: Arrays, action_dim: int) -> Schema:
    """Return the schema of observations as they were recorded, by what follows `observations`: images, else vectors."""
    dtypes = {name: "uint8" if are_images(values) else "float32" for name, values in parts.items()}
    named = {name[1:]: Column(values.shape[1:], dtypes[name]) for name, values in parts.items()}
    return Schema(named.get("", named), action_dim)


def last_part(name: str) -> str:
    """Return the name under which one of several observations is stored: `top` of `observation.images.top`."""
    return re.sub("[^0-9A-Za-z_]", "_", re.split("[./]", name)[-1])


def sampled(parts: Arrays) -> np.ndarray:
    """Return (N, k) numbers that tell observations apart: all of vectors, and some pixels of each image."""
    if [*parts] == [""] and not are_images(parts[""]):
        return parts[""]
    flat = {name: values.reshape(len(values), -1) for name, values in parts.items()}
    steps = {name: max(1, flat[name].shape[1] // _SAMPLE) if are_images(parts[name]) else 1 for name in parts}
    return np.concatenate([flat[name][:, ::step].astype(np.float64) for name, step in steps.items()], axis=1)


# ---- columns of tables ----


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds lists."""
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_encoded(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds encoded pictures: bytes, or a struct that has them, as datasets do."""
    if pa.types.is_struct(kind):
        inner = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
        return inner is not None and (is_encoded(inner) or pa.types.is_null(inner))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column of this type is read as images: encoded ones, or lists of lists."""
    return is_encoded(kind) or (is_list(kind) and is_list(kind.value_type))


def image_column(
    column: pa.Array, name: str, path: Path, first_row: int, like: Schema | None = None, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """Return the images of a column, uint8 (N, H, W, C); flat lists are brought to the `shape` of an image.

    DatasetError if a row has none, cannot be decoded, or differs from the first in its size or channels.
    """

    def bad(found: str, remedy: str) -> DatasetError:
        return DatasetError(f"{path}: column '{name}' {found}; {remedy}")

    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise bad(f"has no picture at row {first_row + row}", "fill it or remove that row")
    if not is_encoded(column.type):
        values = _unnested(column, first_row, bad)
        values = values.reshape(len(values), *shape) if shape else values
        column_of(
            values.dtype, values.shape, like, lambda found, remedy: bad(found, f"{remedy}, or map a column of numbers")
        )
        return values
    if not pa.types.is_struct(column.type):
        return decoded(column.to_pylist(), f"{path}: column '{name}'", path, first_row)
    missing = np.flatnonzero(column.field("bytes").is_null().to_numpy(zero_copy_only=False))
    if len(missing):
        there = str(column[missing[0]].as_py())[:200]
        raise bad(
            f"has no bytes at row {first_row + missing[0]}, only {there}", "embed the pictures in the table before"
        )
    return decoded(column.field("bytes").to_pylist(), f"{path}: column '{name}'", path, first_row)


def _unnested(column: pa.Array, first_row: int, bad: Bad) -> np.ndarray:
    """Return lists of lists of numbers as one array, (N, ...), in the type of the numbers."""
    values, lengths = column, [len(column)]
    while is_list(values.type):
        inner = values.flatten()
        each = np.array([values.type.list_size]) if pa.types.is_fixed_size_list(values.type) else _lengths(values)
        if inner.null_count:
            raise bad("misses numbers of a picture", "fill them or remove those rows")
        if len(other := np.flatnonzero(each != each[0])):
            row = first_row + int(other[0]) * lengths[0] // len(values)
            raise bad(f"has {each[other[0]]} values at row {row}, {each[0]} before", "bring all pictures to one size")
        values, lengths = inner, [*lengths, int(each[0])]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise bad(f"holds {column.type}", "map a column of numbers, of lists of numbers or of images")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(lengths)


def _lengths(values: pa.Array) -> np.ndarray:
    return np.diff(values.offsets.to_numpy())


def decoded(pictures: Sequence[bytes], what: str, path: Path, first_row: int = 0) -> np.ndarray:
    """Return encoded pictures of one size as uint8 (N, H, W, C); `what` names them in errors."""
    first = _decode(pictures[0], f"{what}, row {first_row}", None)
    check_expansion(path, compressible(first.dtype, (len(pictures), *first.shape)), f"pictures in {len(pictures)} rows")
    found = np.empty((len(pictures), *first.shape), np.uint8)
    for row, data in enumerate(pictures):
        found[row] = _decode(data, f"{what}, row {first_row + row}", first.shape)
    return found


def _decode(data: bytes, where: str, expected: tuple[int, ...] | None) -> np.ndarray:
    """Return one picture, (H, W, C), which must be of the `expected` shape."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            (width, height), mode = picture.size, _CONVERTED.get(picture.mode, picture.mode)
            shape = (height, width, Image.getmodebands(mode))
            if mode not in _AS_THEY_ARE:
                remedy = "save it with 8 bits a channel, grey, RGB or RGBA"
                raise DatasetError(f"{where}: the picture is of pillow's mode {picture.mode}; {remedy}")
            if expected is not None and shape != expected:
                raise DatasetError(f"{where}: the picture is {shape} and others are {expected}; bring all to one size")
            if width * height > MAX_PIXELS:
                raise DatasetError(f"{where}: {width} x {height} pixels are declared; make the pictures smaller before")
            return np.asarray(picture if mode == picture.mode else picture.convert(mode)).reshape(shape)
    except DatasetError:
        raise
    except Exception as error:  # pillow's decoders raise whatever they like
        what = f"{len(data)} bytes are no picture that can be decoded ({type(error).__name__}: {str(error)[:100]})"
        raise DatasetError(f"{where}: {what}; save it as PNG or JPEG, or map another column") from error
