"""Buckets: `s3://`, `gs://` and `az://` for whatever a command reads and for what it writes.

The rest of the package works on local paths. Inputs are fetched into a cache before a command
starts. Outputs are written into a directory beside it and uploaded. An address and its local place
follow from each other, see `places`; so records and messages show the address.

An object store has no rename. What it has: the upload of one object is atomic. So the order of the
uploads makes the rest atomic, see `mirror`.
"""
