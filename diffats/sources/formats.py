"""Formats that are known by their first bytes and not read as they are: what they are, and what to do."""

from __future__ import annotations

#: First bytes of files that nothing here reads, what they are, and the fix.
_FOREIGN = (
    (b"\x0e\x03\x13\x01", "HDF4", "Convert it to NetCDF or HDF5, for example with h4toh5 or GDAL's gdal_translate"),
    (b"BUFR", "BUFR", "Convert it to NetCDF, for example with ecCodes"),
    (b"SIMPLE  ", "FITS", "Read it with astropy, and save it with numpy.savez or xarray"),
    (b"MATLAB 5", "a MATLAB file", "Read it with scipy.io.loadmat, and save it with numpy.savez or xarray"),
    (b"PAR1", "a Parquet table", "Read it with pandas, and save it with xarray's to_netcdf"),
    (b"\x93NUMPY", "a NumPy array", 'Let its name end in .npy, or set data.engine = "numpy"'),
    (b"PK\x03\x04", "a Zip archive", "Unpack it; let its name end in .npz where numpy.savez wrote it"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip"),
    (b"BZh", "compressed with bzip2", "Unpack it with bunzip2"),
    (b"\xfd7zXZ", "compressed with xz", "Unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it with unzstd"),
    (b"version ", "a pointer of Git LFS, not the data", "Run git lfs pull in its folder"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PAGES = (b"<!docty", b"<html", b"<?xml")


def foreign(magic: bytes) -> str | None:
    """What a file is that no engine here reads, and the fix; None of an unknown one.

    Parameters
    ----------
    magic
        Its first eight bytes.

    >>> foreign(b"BZh91AY&")
    'it is compressed with bzip2. Unpack it with bunzip2.'
    """
    if not magic:
        return "it is empty. Copy it anew, or narrow the pattern: it may be a lock, or a copy that was not finished."
    if magic.startswith(_TIFF):
        return (
            "it is a TIFF that is no picture of 8, 16 or 32 bits, or is not called .tif. Run pip install rioxarray, "
            'and set data.engine = "rasterio".'
        )
    if magic.lstrip().lower().startswith(_PAGES):
        return "it is a web page or XML, not the data. Download it anew; the server may have asked for a login."
    known = next(((what, fix) for first, what, fix in _FOREIGN if magic.startswith(first)), None)
    return None if known is None else f"it is {known[0]}. {known[1]}."
