"""Build this project's container images from Debian packages, wheels and the checkout, without a daemon.

`tree` is the value everything works on: a file system as a dictionary. `debian` and `python` make
trees, `recipes` says which trees an image consists of, `oci` turns them into one archive.
"""
