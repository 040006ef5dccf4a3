"""What a file is, by its first bytes: a model of which format, or what else in plain words."""

_LFS = b"version https://git-lfs"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_TFLITE_MARK = b"TFL3"
# Root offset, mark, and the smallest table.
_SMALLEST_TFLITE_BYTES = 16
HEAD_BYTES = 512


def model_format(head: bytes) -> str:
    """Return `tflite` or `onnx`; ONNX has no mark, so everything else is tried as such."""
    return "tflite" if head[4:8] == _TFLITE_MARK else "onnx"


def not_a_model(head: bytes, size_bytes: int) -> str:
    """Say what a file is that is certainly no model to run; empty if it may be one."""
    if size_bytes == 0:
        return "it is empty"
    if head.startswith(_LFS):
        return "it is a Git LFS pointer, not the model: fetch the model itself (git lfs pull)"
    if head.startswith(_HDF5):
        return "it is a Keras HDF5 file, not a model to run: convert it first"
    if head.startswith(_ZIP):
        return "it is a zip archive (a .keras file is one), not a model to run: convert it first"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not a model: the download it came from went wrong"
    if size_bytes < _SMALLEST_TFLITE_BYTES:
        return f"it has only {size_bytes} bytes, too few for any model: it was cut short"
    return ""
