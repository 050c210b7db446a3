"""Unpacks the headers of torch: WHEEL FOLDER."""

import sys
from zipfile import ZipFile

wheel, folder = sys.argv[1:]
with ZipFile(wheel) as archive:
    archive.extractall(folder, [name for name in archive.namelist() if name.startswith("torch/include/")])
